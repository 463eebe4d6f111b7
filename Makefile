# make demo    the whole line on this machine, in minutes
# make test    the fast tests; make test TIER=all  adds real ranks, Ray and (as root) a Slurm cluster of two hosts;
#              TIER=gpu runs those that need a GPU
# make soak    the long forms of tests, each with a new seed; SOAK_SEED=... repeats one; results are in tests/SOAK.md
# make lint    ruff, mypy, shellcheck

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
MARKERS_slow := slow
MARKERS_slurm := slurm
MARKERS_gpu := gpu
MARKERS_all := not gpu and not soak
BIN := $(VENV)/bin

.PHONY: demo test soak lint clean

demo: $(VENV)/.run
	@rm -rf runs/demo-base runs/demo runs/demo-corpus
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "$(MARKERS_$(TIER))" $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(VENV)/.dev
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

clean:
	rm -rf $(VENV) runs
