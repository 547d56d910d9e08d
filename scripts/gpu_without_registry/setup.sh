#!/usr/bin/env bash
# On the GPU machine, as root, once (40 s): vLLM's venv in /data/vllm, the control side's in /data/ctl, and the
# lab's checkpoints. What pack.sh made lies in /data/parts, the checkout in /data/repo.
set -u
export LC_ALL=C.UTF-8
parts=/data/parts cores=$(nproc)
mkdir -p /data/log
pure=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
( # byte code, which a service's user can't write; and the libraries into memory
  cd "$pure" && python3 -m compileall -q -j "$cores" torch transformers triton numpy sympy networkx tokenizers safetensors huggingface_hub > /dev/null 2>&1
  find torch/lib nvidia triton/backends -name '*.so*' -size +1M 2> /dev/null | xargs -P 8 -n 4 cat > /dev/null 2>&1
) &
( set -e
  python3 -m venv --without-pip --symlinks /data/vllm
  site=/data/vllm/lib/python3.12/site-packages
  cat $parts/part.* | xz -dc -T0 | tar xf - -C $site
  mv $site/.bin/* /data/vllm/bin/ && chmod 755 /data/vllm/bin/*
  ninja=$(command -v ninja) && ln -sf "$ninja" /data/vllm/bin/ninja  # FlashInfer builds kernels with it; two GPUs don't start without
  echo "$pure" > $site/machine.pth  # torch, and what else the machine has
  # The guard matters: vLLM starts its engine with `spawn`, which imports this file again.
  printf '#!/data/vllm/bin/python\nimport sys\nfrom vllm.entrypoints.cli.main import main\nif __name__ == "__main__":\n    sys.exit(main())\n' > /data/vllm/bin/vllm
  chmod 755 /data/vllm/bin/vllm
  /data/vllm/bin/python -m compileall -q -j "$cores" $site > /dev/null 2>&1 || true
) > /data/log/vllm.log 2>&1 & vllm=$!
( set -e
  python3 -m venv /data/ctl; site=/data/ctl/lib/python3.12/site-packages
  mkdir -p /data/wheels && tar xf $parts/wheels.tar -C /data/wheels
  /data/ctl/bin/python -m pip install -q --no-index --no-deps --no-compile /data/wheels/*.whl
  mkdir -p $site/uv $site/pyinfra_vllm-0.1.0.dist-info
  echo 'def find_uv_bin(): return "/bin/false"' > $site/uv/__init__.py
  printf 'Metadata-Version: 2.1\nName: pyinfra-vllm\nVersion: 0.1.0\n' > $site/pyinfra_vllm-0.1.0.dist-info/METADATA
  echo /data/repo/src > $site/project.pth
  printf '#!/data/ctl/bin/python\nimport sys\nfrom pyinfra_vllm.cli import main\nif __name__ == "__main__":\n    sys.exit(main())\n' > /data/ctl/bin/pyinfra-vllm
  chmod 755 /data/ctl/bin/pyinfra-vllm
) > /data/log/control.log 2>&1 & control=$!
wait $control || { cat /data/log/control.log; exit 1; }
wait $vllm || { cat /data/log/vllm.log; exit 1; }
/data/vllm/bin/vllm --version | tail -1
source $parts/stories.sh && lab_of 0
cd /data/repo && /data/ctl/bin/python -c 'from lab import session; session.prepare()' > /data/log/prepare.log 2>&1 || tail -3 /data/log/prepare.log
wait
