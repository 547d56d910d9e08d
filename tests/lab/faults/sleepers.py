"""Faults of a switch with standby: a sleep or a wake that fails, wrong answers after it, memory that nobody
gives back, and a front that is killed or led nowhere. Each passes by itself, or the host gets around it.
"""

from __future__ import annotations

from .fault import RETRIED_S, Act, Fault, Scene
from .ground import ENGINE, LOOKS, UNIT, Ground

FRONT, AWAKE = "vllm-tiny-front.service", "/run/vllm-tiny/awake"
HELD_MIB = 140_000  # of the stand-in's 143,771: no start and no wake has room


def engine(which: str, act: str, how: str) -> Act:
    """From now on the engine of the old or the new release fails so."""

    def strike(ground: Ground, scene: Scene) -> None:
        release = getattr(scene, which)
        ground.inside("sh", "-c", f"echo {release} {act} {how} > {ENGINE}; chmod 644 {ENGINE}")

    return strike


def repair_engine(ground: Ground, scene: Scene) -> None:
    ground.inside("rm", "-f", ENGINE)


def hold_memory(ground: Ground, scene: Scene) -> None:
    ground.card(HELD_MIB)


def free_memory(ground: Ground, scene: Scene) -> None:
    ground.card()


def kill_front(ground: Ground, scene: Scene) -> None:
    ground.inside("systemctl", "kill", "--signal=KILL", FRONT, check=False)


def lose_symlink(ground: Ground, scene: Scene) -> None:
    ground.inside("rm", "-f", AWAKE)


def crash_own(which: str) -> Act:
    """SIGKILL of one of the two servers, by its own unit: the alias means the current release."""

    def strike(ground: Ground, scene: Scene) -> None:
        unit = UNIT.replace(".service", f".{getattr(scene, which)}.service")
        ground.inside("systemctl", "kill", "--signal=KILL", unit, check=False)

    return strike


def look_now(ground: Ground, scene: Scene) -> None:
    """The host's look of every two minutes, without waiting for it."""
    ground.inside("systemctl", "start", LOOKS)


SLEEPERS: dict[str, Fault] = {
    **{
        f"{name}-{which}": Fault(
            f"the {which} release {title}", engine(which, act, how), repair_engine, limit_s=60
        )
        for which in ("old", "new")
        for name, title, act, how in (
            ("no-sleep", "fails to fall asleep", "SLEEP", "fails"),
            ("no-wake", "fails to wake", "WAKE", "fails"),
            ("wrong", "answers otherwise after a wake", "WAKE", "wrong"),
        )
    },
    "memory-held": Fault(
        "the card's memory is not given back", hold_memory, free_memory, limit_s=2 * RETRIED_S, lasts_s=120
    ),
    "front": Fault("SIGKILL of the front", kill_front),
    "symlink": Fault("the front's symlink is lost", lose_symlink),
    "symlink-late": Fault(
        "the front's symlink is lost, and nobody switches", lose_symlink, limit_s=RETRIED_S, lasts_s=120
    ),
    "crash-old": Fault("SIGKILL of the old release's server", crash_own("old"), limit_s=60),
    "crash-sleeper": Fault(
        "SIGKILL of the release that sleeps on, and nobody switches", crash_own("old"), look_now, lasting=True
    ),
    "crash-new": Fault("SIGKILL of the new release's server", crash_own("new"), limit_s=60),
}
