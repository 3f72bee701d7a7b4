# `make demo` trains, `make test` tests, `make docs` builds the site; each makes the virtual environment first where there
# is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DOCS_READY := $(VENV)/.installed-docs
INTEGRATIONS_READY := $(VENV)/.installed-integrations
# One thread to a process: matrices here are small, and two processes with two threads each wait for one another.
ONE_THREAD := OMP_NUM_THREADS=1
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadscope
COVERAGE ?= $(if $(CI),--cov)

.PHONY: demo test lint types coverage examples integrations docs wheel-test format clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY) lint types
	$(ONE_THREAD) $(BIN)/python -m pytest $(WORKERS) $(COVERAGE) -m "not timing"
	$(ONE_THREAD) $(BIN)/python -m pytest -m timing

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/python -m mypy

coverage: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest $(WORKERS) --cov -m "not timing"

# Every script of examples/ as a user starts it, with few steps.
examples: $(READY)
	.ci/examples $(BIN)/python

# The recipes for other libraries; without these the suite skips them.
integrations: $(INTEGRATIONS_READY)
	$(ONE_THREAD) $(BIN)/python -m pytest tests/integrations tests/test_docs.py -k "integrations or page"

# The documentation into site/; a warning, such as of a link or a picture that leads nowhere, is an error.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The contract tests on the built wheel, in an environment of its own: a few minutes, and as much disk as torch takes.
wheel-test:
	.ci/wheel $(PYTHON)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,examples]'
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(INTEGRATIONS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[integrations]'
	touch $@

clean:
	rm -rf build site dist runs .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage *.egg-info
