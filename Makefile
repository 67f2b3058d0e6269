# make demo | test | test-slow | ui | docs: each makes the virtual environment first where it is missing or out of date.
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed

# An environment that was copied along with the project still points to the old folder: install again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlruns/mlflow.db

.PHONY: install demo test test-slow ui docs format
.DEFAULT_GOAL := install

install: $(STAMP)

# The stamp is written last: without it an install has failed or was interrupted.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@python=$$(for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$name && break; done); \
	if [ -z "$$python" ]; then echo "make: no Python 3.11 to 3.14 found; install one of them" >&2; exit 1; fi; \
	echo "installing into $(VENV) (some minutes, 7 GB)"; \
	$(PY) -c '' 2>/dev/null || clear=--clear; \
	$$python -m venv $$clear $(VENV)
	$(PY) -m pip install --constraint constraints.txt --editable '.[dev]'
	@printf %s '$(CURDIR)' > $@

demo: $(STAMP)
	$(PY) -m lightning_da sweep --config conf/data/digits.yaml

test: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -m 'not slow' --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(PY) -m pytest -m slow

ui: $(STAMP)
	$(PY) -m lightning_da ui

# site/index.html; it opens without a server
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
