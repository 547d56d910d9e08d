# What a person runs here is what CI runs. `make demo` and `make test` need root on Debian: they boot test hosts.
PYTHON ?= python3
BIN := .venv/bin
# Fast tests write and fsync a lot and wait now and then: memory for their files, more of them than cores.
FAST := $(if $(wildcard /dev/shm/.),/dev/shm,/tmp)
LOCK_OPTIONS := --extra build --extra test --universal --generate-hashes --no-header --no-annotate --no-emit-index-url
# Two labs side by side, a file in one of them; files in the order that tests/lab/conftest.py gives them.
TWO_LABS := -n 2 --dist loadfile --no-loadscope-reorder --durations 60
# Tests start a hundred programs of the project's, which without byte code would be compiled anew each time.
unexport PYTHONDONTWRITEBYTECODE
LAB := PYTHONPATH=tests/lab $(BIN)/python -m lab

.PHONY: demo test test-fast test-thorough test-alone test-lab test-full test-long test-faults test-gpu lint bench-gate bench-quality bench-turns bench-accuracy bench bench-unchanged bench-away bench-scale bench-verification bench-swarm lab-packages lab-cache lab-image lab-runtime lab-up lab-down update clean

demo: lab-cache
	$(LAB) demo

# Packages first: a fresh Debian has no python3-venv to run even the fast tests in.
test:
	@PYTHONPATH=tests/lab $(PYTHON) -m lab packages --browser
	@$(MAKE) --no-print-directory test-fast
	@$(MAKE) --no-print-directory test-thorough
	@$(MAKE) --no-print-directory test-alone
	@$(MAKE) --no-print-directory test-lab

test-fast: .venv/complete
	TMPDIR=$(FAST) $(BIN)/python -m pytest -n 4 --dist worksteal -m "not alone and not thorough and not full" tests --ignore tests/lab

# Three processes for two cores: the swarm's tests mostly wait.
test-thorough: .venv/complete
	TMPDIR=$(FAST) $(BIN)/python -m pytest -n 3 --dist loadgroup -m "thorough and not full" tests --ignore tests/lab

test-alone: .venv/complete
	$(BIN)/python -m pytest -m alone tests --ignore tests/lab

# What is measured has the cores for itself; everything else goes on in two labs side by side.
test-lab: lab-cache
	$(BIN)/python -m pytest -m "alone and not full and not long and not gpu" tests/lab
	$(BIN)/python -m pytest $(TWO_LABS) -m "not alone and not full and not long and not gpu" tests/lab

# The rest, an hour of it, which CI runs too: what takes long and is rarely red.
test-full: lab-cache
	@PYTHONPATH=tests/lab $(PYTHON) -m lab packages --browser
	TMPDIR=$(FAST) $(BIN)/python -m pytest -n 2 --dist loadgroup -m full tests --ignore tests/lab
	$(BIN)/python -m pytest -m "alone and full" tests/lab
	$(BIN)/python -m pytest $(TWO_LABS) -m "not alone and full" tests/lab

# A tuning with the real vLLM on the CPU, which nothing else runs: a quarter of an hour.
test-long: lab-cache
	$(BIN)/python -m pytest -m long tests/lab

# The real vLLM's cases come after: two cores that carry the light hosts' table starve three real servers.
test-faults: lab-cache
	PYINFRA_VLLM_FAULTS=all $(BIN)/python -m pytest tests/lab/faults/test_invariants.py tests/lab/faults/test_faults.py
	PYINFRA_VLLM_FAULTS=all $(BIN)/python -m pytest tests/lab/faults/test_faults_standby.py
	PYINFRA_VLLM_FAULTS=all $(BIN)/python -m pytest tests/lab/faults/test_way_back.py tests/lab/faults/test_faults_real.py

# On a machine with NVIDIA GPUs, and PYINFRA_VLLM_LAB_RUNTIME naming a venv with vLLM for them (docs/gpu.md).
test-gpu: .venv/complete
	$(LAB) gpu
	$(BIN)/python -m pytest -s -m gpu tests/lab/gpu
	PYTHONPATH=tests/lab $(BIN)/python -m gpu.page

bench-gate: .venv/complete
	$(BIN)/python benchmarks/gate/replay.py

bench-quality: .venv/complete
	$(BIN)/python benchmarks/quality/table.py

bench-turns: .venv/complete
	$(BIN)/python benchmarks/turns/simulate.py

bench-accuracy: lab-cache
	$(BIN)/python benchmarks/gate/on_lab.py accuracy --words 750 --turns 8

# What docs/performance.md tells, but for the swarm's half hour. Nothing else should run beside it.
bench: bench-unchanged bench-away bench-scale bench-verification

bench-scale: lab-cache
	$(BIN)/python benchmarks/scale/on_lab.py

bench-verification: .venv/complete
	$(BIN)/python benchmarks/verification/on_disk.py

bench-away: lab-cache
	$(BIN)/python benchmarks/away/on_lab.py

# Ten hosts with nothing to do, against bare pyinfra and Ansible: five minutes.
bench-unchanged: lab-cache
	$(BIN)/python benchmarks/unchanged/on_lab.py

# 16 hosts with links of 100 Mbit/s and a checkpoint of 2 GB, three times: about half an hour, and 35 GB of disk.
bench-swarm: lab-cache
	$(BIN)/python benchmarks/swarm/on_lab.py

lint: .venv/complete
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lab-up: lab-cache
	$(LAB) up

lab-down: .venv/complete
	$(LAB) down

# The hosts' image and the runtime are built side by side; what is in the cache is left alone.
lab-cache: lab-packages
	@$(MAKE) --no-print-directory -j2 lab-image lab-runtime

lab-packages:
	@PYTHONPATH=tests/lab $(PYTHON) -m lab packages

lab-image:
	PYTHONPATH=tests/lab $(PYTHON) -m lab image

lab-runtime: .venv/complete
	$(LAB) prepare

# Nothing is installed whose sha256 is not in requirements.lock, whatever an index or a cache hands out.
.venv/complete: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --require-hashes --requirement requirements.lock
	$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# Newer versions for a person to look through (docs/security.md); without --upgrade only what pyproject.toml newly asks for.
update: .venv/complete
	$(BIN)/uv pip compile -q $(LOCK_OPTIONS) --upgrade --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
