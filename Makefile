# Everything that is done with this repository. Needs git, make and Python 3.11 or newer; all else comes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Build back ends are constrained too; which of the two variables counts depends on pip's age.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input

# What is measured has an environment of its own, with what it needs and nothing else.
PLAIN := $(VENV)/plain

# More arguments for pytest, the benchmark or the demo: make test ARGS='-k codec'
ARGS ?=

# The tests of a file stay together for the fixtures that they share; the files come in the order of tests/conftest.py.
WORKERS := --numprocesses=auto --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs into one .venv at a time would spoil it.
.NOTPARALLEL:
.PHONY: help venv demo test coverage lint format types layers docs bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/test.stamp ## install deltareg and the tools of its developers into .venv

demo: $(VENV)/runtime.stamp ## the whole way of a delta, on real weights
	@$(BIN)/python -m tests.demo $(ARGS)

test: $(VENV)/test.stamp ## run every test
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

coverage: $(VENV)/test.stamp ## run every test and tell which lines and branches none reaches (takes twice as long)
	@$(BIN)/python -m pytest $(WORKERS) --cov --cov-report=term $(ARGS)

lint: $(VENV)/test.stamp ## style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(VENV)/test.stamp ## mend what can be mended of style and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(VENV)/test.stamp ## check types, strictly in deltareg/
	@$(BIN)/pyright

layers: $(VENV)/test.stamp ## check who imports whom
	@$(BIN)/lint-imports --no-logo

docs: $(VENV)/test.stamp ## write the generated pages and the schemas anew
	@$(BIN)/python -m tests.docs

bench: $(VENV)/bench.stamp $(PLAIN)/stamp ## measure size, speed and memory beside the peers; writes bench.json
	@$(PIP:$(BIN)/%=$(PLAIN)/bin/%) --no-deps --force-reinstall .
	@BENCH_BIN=$(PLAIN)/bin $(BIN)/python -m tests.bench $(ARGS)

clean: ## remove what running left behind, keep .venv and the fetched weights
	@rm -rf build dist .coverage htmlcov .demo bench.json .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv and the fetched weights too
	@rm -rf $(VENV) .cache

# A stamp says what .venv holds: it is made anew only when the requirements change.

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: deltareg needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/runtime.stamp: pyproject.toml registry/pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing deltareg into $(VENV)"
	@$(PIP) -e . -e ./registry
	@touch $@

$(VENV)/test.stamp: pyproject.toml registry/pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing deltareg and its test tools into $(VENV) (torch is large: a few minutes)"
	@$(PIP) -e '.[test,oracle]' -e ./registry
	@touch $@ $(VENV)/runtime.stamp

$(VENV)/bench.stamp: $(VENV)/test.stamp
	@echo "installing the peers of the benchmark into $(VENV)"
	@$(PIP) -e '.[bench]' || echo "zipnn could not be built (it needs a C compiler): its rows are left out" >&2
	@touch $@

$(PLAIN)/stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@$(PYTHON) -m venv $(PLAIN)
	@$(PIP:$(BIN)/%=$(PLAIN)/bin/%) .
	@touch $@
