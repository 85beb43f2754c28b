# Everything a newcomer needs: `make serve` runs the server, `make test` runs every test. Both do their own set-up.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: serve test lint types reference performance clean

serve: $(VENV)/ready
	$(BIN)/sekali serve

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest

lint: $(VENV)/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/ready-dev
	$(BIN)/mypy

# The pages of docs/reference that come from the code.
reference: $(VENV)/ready-dev
	$(BIN)/python scripts/reference.py

# The figures of docs/performance.md, from what `sekali bench` left in bench/results.
performance: $(VENV)/ready-dev
	$(BIN)/python scripts/performance.py

$(VENV)/ready: pyproject.toml constraints.txt
	scripts/make-venv $(PYTHON) $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
