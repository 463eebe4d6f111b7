# make demo    the whole line on this machine, in minutes
# make test    the tests; ARGS chooses, for example  make test ARGS="-m slow"
# make lint    ruff, mypy, shellcheck

PYTHON ?= python3
VENV ?= .venv
# Installed first and by version: pip then takes the build for this machine (CPU or CUDA) that you point it to,
# and nothing later replaces it. Another one: make TORCH=torch==2.12.0
TORCH ?= torch==2.13.0
ARGS ?=

BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.run
	@rm -rf runs/demo-base runs/demo runs/demo-corpus
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.sh' .ci/run | xargs shellcheck

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[prepare,train]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
