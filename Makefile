# make run, make test: each sets up what it needs, in .venv, and does its work.
# PYTHON=/path/to/python chooses the interpreter the environment is made with.

VENV := .venv
BIN := $(VENV)/bin
IS_NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p $(IS_NEW_ENOUGH) && echo $$p && break; done)
PROJECTS := pyproject.toml setup.py clients/python/pyproject.toml
DEMO_NEEDS := $(wildcard demos/*/requirements.txt)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL_ALL = install $(addprefix -r ,$(DEMO_NEEDS)) -e clients/python -e

.PHONY: help run test lint types docs fuzz idle bench wheel venv clean

help:
	@echo 'make run    the daemon and the demo app; prints the address of the page'
	@echo 'make test   all tests'
	@echo 'make lint   ruff'
	@echo 'make types  mypy'
	@echo 'make docs   the documentation, in docs/_build/html'
	@echo 'make fuzz   inputs at random to every parser; ARGS="--seconds 3600" for longer'
	@echo 'make idle   connections of 70 seconds without a word, through nginx and Caddy'
	@echo 'make bench  syncserver beside other servers, as ratios'
	@echo 'make wheel  build the wheels and try them in an empty environment'
	@echo 'make venv   only set up .venv, with everything'
	@echo 'make clean  remove what make has made'

run: $(VENV)/.run
	@$(BIN)/python -m demos.todo

test: $(VENV)/.test
	@$(BIN)/python tools/run_tests.py $(ARGS)

lint: $(VENV)/.test
	@$(BIN)/ruff check

types: $(VENV)/.test
	@$(BIN)/mypy

docs: $(VENV)/.test
	@$(BIN)/sphinx-build -q -W -n --keep-going docs docs/_build/html
	@echo 'docs/_build/html/index.html'

fuzz: $(VENV)/.test
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.fuzz $(ARGS)

idle: $(VENV)/.test
	@PYTHONPATH=.:clients/python $(BIN)/python -m tests.idle

bench: $(VENV)/.test
	@$(BIN)/python -m bench $(ARGS)

wheel: $(VENV)/.test
	@$(BIN)/python tools/check_wheels.py

venv: $(VENV)/.test

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info clients/python/build clients/python/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis clients/javascript/node_modules
	rm -rf demos/*/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run: $(VENV)/.made $(PROJECTS) $(DEMO_NEEDS)
	@echo 'Installing syncserver and what the demo needs (once) ...'
	@$(PIP) $(INSTALL_ALL) .
	@touch $@

$(VENV)/.test: $(VENV)/.made $(PROJECTS) $(DEMO_NEEDS)
	@echo 'Installing what the tests need (once) ...'
	@$(PIP) $(INSTALL_ALL) '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.made:
	@test -n '$(PYTHON)' || { \
		echo 'No Python 3.11 or newer found as python3. Install one,'; \
		echo 'or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'; exit 1; }
	@$(PYTHON) $(IS_NEW_ENOUGH) || { \
		echo '$(PYTHON) is not Python 3.11 or newer.'; \
		echo 'Name one that is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv,'; \
		echo 'or name another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
