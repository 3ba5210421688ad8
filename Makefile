# One command per chore, the same for people and for .ci/run. `make` alone lists them.
# Needs make and Python 3.10 to 3.12; everything else goes into .venv/, but for the programs of `make system`.

.DEFAULT_GOAL := help
.PHONY: help run test check fuzz lint docs system bench lock audit clean

VENV := .venv
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -qq

# Another interpreter: make PYTHON=/path/to/python3.12. Of the names the first that really starts is taken: what is on
# PATH may be a version manager's stub.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.10 python3 python)

# Whether there is a CUDA GPU: 1 or 0. It decides between requirements.txt (gpu) and requirements-cpu.txt (cpu).
ifndef GPU
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 0)
endif
FULL := $(if $(filter 1,$(GPU)),gpu,cpu)

# The tests run beside each other, in a process more than there are cores, because many wait; ARGS=-n0 runs them in one.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(PY) -m pytest -n $(shell expr $(CORES) + 1) --maxprocesses 4 --dist worksteal

# The programs that the tests run, by the names of Debian's packages and of Homebrew's formulae. Debian's npm cannot be
# installed beside the npm of another source.
PROGRAMS := nginx postgresql chromium ffmpeg prometheus $(if $(shell command -v npm),,npm)
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)

# What `make run` runs: the model named in the environment, else pocketsphinx, or the worker's default where there is a
# GPU. The embedded engine and the dry run need no more than requirements-base.txt.
RUN_MODEL := $(or $(MODEL),$(MODEL_NAME),$(PARAKEET_MODEL),$(if $(filter cpu,$(FULL)),pocketsphinx))
LIGHT := $(or $(filter 1 true,$(SKIP_MODEL_LOAD)),$(filter pocketsphinx,$(RUN_MODEL)))
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "MODEL=... names another model for run; ARGS=... goes to handler.py, pytest or the benchmarks;"
	@echo "PYTHON=... is the interpreter to make $(VENV)/ with; GPU=0 or 1 overrides what nvidia-smi says."

run: $(VENV)/$(if $(LIGHT),base,$(FULL)).installed  ## Run the worker on test_input.json: pocketsphinx, or Parakeet on a GPU
	@$(if $(RUN_MODEL),MODEL='$(RUN_MODEL)') $(PY) -u handler.py $(ARGS)

test: $(VENV)/$(FULL).installed $(VENV)/dev.installed $(VENV)/real.installed $(if $(shell command -v npm),$(VENV)/npm.installed)  ## Run all tests; those that need a program of `make system` are skipped without it
	@$(PYTEST) $(ARGS)

check: lint  ## Lint, then run the fast tests, which need neither torch nor NeMo
	@$(PYTEST) -m 'not slow' $(ARGS)

# The same SEED gives the same cases; SECONDS says how many of them. ARGS="--target forms --case 17" repeats one case.
fuzz: SECONDS ?= 60
fuzz: SEED ?= 0
fuzz: $(VENV)/dev.installed  ## Feed damaged files, payloads and forms to the worker for SECONDS=60, from SEED=0 on
	@$(PY) -m tools.fuzz --seconds $(SECONDS) --seed $(SEED) $(ARGS)

lint: $(VENV)/dev.installed  ## Check style, format, types, imports, prose and generated tables
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check -q .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) -m tools.prose
	@$(PY) -m cogapp --check --verbosity=1 --check-fail-msg='run $(PY) -m cogapp -r README.md docs/*.md' README.md docs/*.md

docs: $(VENV)/dev.installed  ## Build the documentation site into site/; a broken link is an error
	@$(PY) -m mkdocs build --strict -q

system:  ## Install the programs that the tests run: nginx, PostgreSQL, Chromium, ffmpeg, Prometheus, npm
	@if ! command -v apt-get >/dev/null; then \
	  echo "apt-get is not here. Install with your package manager (macOS: brew): $(PROGRAMS)" >&2; exit 1; \
	fi
	@echo "Installing $(PROGRAMS)"
	@$(SUDO) apt-get update -qq
	@$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(PROGRAMS) >/dev/null

bench: $(VENV)/$(FULL).installed $(VENV)/dev.installed $(VENV)/real.installed  ## Measure speed, side by side with the naive worker and with faster-whisper
	@$(PY) -m benchmarks $(ARGS)

# The image's platform. uv reads the public index only, because wheels from elsewhere would have other hashes.
lock: $(VENV)/dev.installed  ## Resolve requirements.txt into requirements.lock, which the Dockerfile installs
	@$(VENV)/bin/uv pip compile requirements.txt --output-file requirements.lock $(ARGS) --quiet --no-config \
	  --generate-hashes --python-version 3.12 --python-platform x86_64-manylinux_2_39 --custom-compile-command 'make lock'

# Not part of lint, because it asks PyPI's advisory database. --strict: a package that PyPI cannot find is an error.
audit: $(VENV)/dev.installed  ## Look for known vulnerabilities in requirements.lock; requires access to PyPI
	@$(VENV)/bin/uv tool run --no-config --from 'pip-audit>=2.10,<3' pip-audit --strict --require-hashes --disable-pip \
	  -r requirements.lock $(ARGS)

clean:  ## Remove .venv/, the built site and every cache
	@rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for each requirements file: a file is installed again when it or the one it includes is newer than its stamp.
# All share one environment, and all but requirements-real.txt include requirements-base.txt.
$(VENV)/base.installed: requirements-base.txt
$(VENV)/dev.installed: requirements-dev.txt requirements-base.txt
$(VENV)/cpu.installed: requirements-cpu.txt requirements-base.txt
$(VENV)/gpu.installed: requirements.txt requirements-base.txt
$(VENV)/real.installed: requirements-real.txt | $(VENV)/dev.installed

# torchaudio, once installed for a GPU, breaks NeMo beside a CPU build of torch: such an environment is not converted.
$(VENV)/cpu.installed: OTHER := gpu
$(VENV)/gpu.installed: OTHER := cpu

$(VENV)/%.installed: | $(PY)
	@if [ -f '$(VENV)/$(OTHER).installed' ]; then echo "$(VENV)/ was made with GPU=$(if $(filter gpu,$(OTHER)),1,0): run make clean first." >&2; exit 1; fi
	@printf 'Installing %s into $(VENV)/ ... ' $<; start=$$(date +%s); \
	$(PIP) -r $< && touch $@ $(VENV)/base.installed && echo "$$(( $$(date +%s) - start )) s"

# OpenAI's JavaScript client, by the hash in the lock file. No script of the package runs.
$(VENV)/npm.installed: tests/npm/package.json tests/npm/package-lock.json | $(PY)
	@mkdir -p $(VENV)/npm && cp $^ $(VENV)/npm
	@cd $(VENV)/npm && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
	@touch $@

$(PY):
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	    printf 'Making $(VENV)/ with %s ... ' "$$("$$python" -V)"; \
	    "$$python" -m venv --clear $(VENV) && echo done; exit; \
	  fi; \
	done; \
	echo "No suitable Python: tried $(CANDIDATES)." >&2; \
	echo "Install Python 3.10, 3.11 or 3.12 with its venv module (Debian and Ubuntu: python3-venv)," >&2; \
	echo "or name one: make PYTHON=/path/to/python3.12" >&2; exit 1
