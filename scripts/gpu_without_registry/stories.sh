#!/usr/bin/env bash
# stories.sh CARD K...     On the GPU machine, after setup.sh: stories of tests/lab/gpu on this card, one after
# another, each chosen by a pytest -k expression. Two cards side by side: call it twice, in the background.
# Results in /data/results, logs in /data/log.
lab_of() {  # the environment of a lab with this card of its own
  export PYINFRA_VLLM_LAB_RUNTIME=/data/vllm PYINFRA_VLLM_LAB_DEBS=/data/debs PYINFRA_VLLM_LAB_RESULTS=/data/results PYINFRA_VLLM_LAB_CACHE=/data/cache
  export PYINFRA_VLLM_LAB_GPUS=$1 PYTEST_XDIST_WORKER=gw$1 PYTHONPATH=tests/lab LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1 TMPDIR=/dev/shm/lab$1
  export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
  mkdir -p "$TMPDIR"
}
if [ $# -ge 2 ]; then
  card=$1; shift
  lab_of "$card"; cd /data/repo || exit 1
  for story in "$@"; do
    log=/data/log/card$card-$(date +%H%M%S).log
    echo "$(date +%T) card $card: $story" >> /data/log/told.log
    /data/ctl/bin/python -m pytest -s -p no:xdist -p no:cacheprovider -m gpu -k "$story" tests/lab/gpu > "$log" 2>&1
    echo "$(date +%T) card $card: $story: exit $?: $(tail -1 "$log")" >> /data/log/told.log
  done
fi
