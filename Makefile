# Every target makes its own environment in .venv first. To choose a Python: make PYTHON=python3.12 test
PYTHON ?= python3
EXTRAS ?= dev
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)

.PHONY: help install demo test test-slow lint bench clean

help:
	@echo "make demo       train a small model, select, align and fuse; results in demo/"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-slow  the slow tests only"
	@echo "make lint       ruff: lint and format check"
	@echo "make bench      measure; results in bench/results/"
	@echo "make clean      remove .venv, caches, build files and demo/"

install: $(STAMP)

# One stamp per set of extras. A broken or half-made environment is made anew.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No program called $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxfuse needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())'); name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing jaxfuse [$(EXTRAS)] into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch "$@"

demo: $(STAMP)
	$(BIN)/jaxfuse demo --out demo

# A process for each core, up to 4; tests of one file stay together, for they share compiled programs.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 2 --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)
	$(BIN)/python -m bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist demo *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
