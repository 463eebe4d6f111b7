# Targets and their descriptions: make help

PYTHON ?= python3
VENV ?= .venv
# Installed first and by version: pip then takes the build for this machine (CPU or CUDA) that you point it to,
# and nothing later replaces it. Another one: make TORCH=torch==2.12.0
TORCH ?= torch==2.13.0
# Everything but torch, in the versions that were tested
PIP_INSTALL = $(BIN)/pip install --quiet --constraint constraints.txt
TIER ?= fast
ARGS ?=

MARKERS_fast := not slow and not slurm and not gpu and not soak
MARKERS_slow := slow and not soak
MARKERS_slurm := slurm and not soak
MARKERS_gpu := gpu
MARKERS_all := not gpu and not soak
# Most of these tests wait for processes and for each other: two workers share them, groups as tests/conftest.py says
WORKERS_all := -n 2 --dist loadscope --no-loadscope-reorder
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint clean

help: ## print this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 12
	@echo 'TIER=fast (default), slow, slurm, gpu or all; ARGS=... goes to pytest; TORCH=torch==2.12.0 picks another torch'

demo: $(VENV)/.run ## the whole pipeline on this machine, in minutes
	@rm -rf runs/demo-base runs/demo runs/demo-corpus
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev ## the tests of TIER
	$(BIN)/python -m pytest -m "$(MARKERS_$(TIER))" $(WORKERS_$(TIER)) $(ARGS)

soak: $(VENV)/.dev ## the long forms of tests, each with a new seed (SOAK_SEED=N repeats one)
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.sh' .ci/run | xargs shellcheck

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[prepare,train]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

clean: ## remove the environment and runs/
	rm -rf $(VENV) runs
