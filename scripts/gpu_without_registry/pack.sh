#!/usr/bin/env bash
# What `make test-gpu` needs on a GPU machine that reaches no package registry (Python 3.12, x86-64, PyTorch in
# its own site-packages), packed on Debian 12 as parts of 50 MB:
#   pack.sh OUT HAVE.txt     HAVE.txt: the packages that the machine has, one a line, lower case, with dashes
# About eight minutes on two cores. There, with OUT's files in /data/parts: setup.sh, then stories.sh.
set -euo pipefail
out=$(realpath -m "$1") have=$(realpath "$2") vllm=${VLLM:-0.25.1} torch=${TORCH:-2.11.0}
here=$(cd "$(dirname "$0")" && pwd) project=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out/work" && cd "$out/work"
python3 -m venv venv && venv/bin/pip install -q uv
platforms=(); for n in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
download() {  # download FOLDER REQUIREMENTS
  venv/bin/pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --platform any -d "$1" -r "$2"
}
# vLLM and what it needs beyond what is there, but for large parts that serving on Hopper does not import
echo "vllm==$vllm" > vllm.txt; echo "torch==$torch" > torch.txt
venv/bin/uv pip compile -q vllm.txt -c torch.txt --python-version 3.12 --python-platform x86_64-manylinux_2_35 -o all.txt
grep -E '^[a-z0-9]' all.txt | sed 's/ .*//' | while IFS= read -r line; do grep -qx "${line%%[=\[]*}" "$have" || echo "$line"; done > missing.txt
download vllm missing.txt
venv/bin/python - <<'P'
import re, zipfile
from pathlib import Path
SKIPPED = ("flashinfer_cubin", "tokenspeed_triton", "nvidia_", "cuda_python", "pynvvideocodec", "torchcodec", "tilelang", "z3_solver", "sentry", "fastapi_cloud")
for wheel in Path("vllm").glob("*.whl"):
    if not wheel.name.startswith(SKIPPED):
        with zipfile.ZipFile(wheel) as files:
            for item in files.infolist():
                path = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", item.filename)
                path = re.sub(r"^[^/]+\.data/scripts/", ".bin/", path)  # ninja, which kernels are built with
                if not path.endswith("/") and ".data/" not in path and "_vllm_fa2_C" not in path:
                    place = Path("site", path)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(files.read(item))
P
tar cf - -C site . | xz -T0 -6 --block-size=24MiB | split -b 50M -d - "$out/part."
# the control side, as the lock has it; nothing is installed by version there, so uv stays here
grep -E '^[A-Za-z0-9]' "$project/requirements.lock" | sed 's/ .*//' \
  | grep -vE '^(uv|ruff|mypy|httpx2-jsfetch|colorama|hatchling|trove-classifiers|types-|librt|ast-serialize|editables)' > control.txt
download control control.txt
tar cf "$out/wheels.tar" -C control .
PYTHONPATH="$project/tests/lab" python3 -m lab carry --into "$out/debs"
cp "$here"/{setup.sh,stories.sh} "$out/"
du -sh "$out"/part.* "$out/wheels.tar" "$out/debs"
