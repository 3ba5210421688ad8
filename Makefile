# One command per chore, the same for people and for .ci/run. `make` alone lists them.
# Needs make and Python 3.10 to 3.12; everything else goes into .venv/.

.DEFAULT_GOAL := help
.PHONY: help run test lint bench clean

VENV := .venv
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -qq

# Another interpreter: make PYTHON=/path/to/python3.12. The first that really starts is taken: a name on PATH
# may be a version manager's stub.
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.10 python3 python)

# Whether a CUDA GPU answers; GPU=0 or GPU=1 decides otherwise.
GPU ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo 0)
# The requirements with NeMo for this machine: gpu is requirements.txt, cpu is requirements-cpu.txt.
FULL = $(if $(filter 1,$(GPU)),gpu,cpu)

# What `make run` runs, and what it needs for that. Without a GPU the embedded engine, unless a model is named.
NAMED = $(or $(MODEL),$(MODEL_NAME),$(PARAKEET_MODEL))
RUN_MODEL = $(or $(NAMED),$(if $(filter cpu,$(FULL)),pocketsphinx))
LIGHT = $(or $(filter 1 true,$(SKIP_MODEL_LOAD)),$(filter pocketsphinx,$(RUN_MODEL)))
RUN_NEEDS = $(VENV)/$(if $(and $(LIGHT),$(filter cpu,$(FULL))),base,$(FULL)).installed

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  ARGS=... is passed on to handler.py, pytest or the benchmarks; PYTHON=..., GPU=0|1, MODEL=... as in the Makefile."

run:  ## Run the worker on test_input.json: pocketsphinx without a GPU, Parakeet with one
	@$(MAKE) --no-print-directory $(RUN_NEEDS)
	@$(if $(RUN_MODEL),MODEL='$(RUN_MODEL)') $(PY) -u handler.py $(ARGS)

test:  ## Run all tests
	@$(MAKE) --no-print-directory $(VENV)/$(FULL).installed $(VENV)/dev.installed
	@$(PY) -m pytest $(ARGS)

lint: $(VENV)/dev.installed  ## Check style and types
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench:  ## Measure speed, side by side with the naive worker
	@$(MAKE) --no-print-directory $(VENV)/$(FULL).installed $(VENV)/dev.installed
	@$(PY) -m benchmarks $(ARGS)

clean:  ## Remove .venv/ and every cache
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file a requirements file: newer than it means installed. The stamps share one environment, so that a file
# is installed again when it or one that it includes changed, and costs nothing otherwise.
$(VENV)/base.installed: requirements-base.txt
$(VENV)/dev.installed: requirements-dev.txt requirements-base.txt
$(VENV)/cpu.installed: requirements-cpu.txt requirements-base.txt
$(VENV)/gpu.installed: requirements.txt requirements-base.txt

$(VENV)/%.installed: | $(PY)
	@printf 'Installing %s into $(VENV)/ ... ' $<; start=$$(date +%s); \
	$(PIP) -r $< && touch $@ && echo "$$(( $$(date +%s) - start )) s"

$(PY):
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	    printf 'Making $(VENV)/ with %s ... ' "$$("$$python" -V)"; \
	    "$$python" -m venv --clear $(VENV) && echo done && exit 0; exit 1; \
	  fi; \
	done; \
	echo "No suitable Python: tried $(CANDIDATES)." >&2; \
	echo "Install Python 3.10, 3.11 or 3.12 with its venv module (Debian and Ubuntu: python3-venv)," >&2; \
	echo "or name one: make PYTHON=/path/to/python3.12" >&2; exit 1
