# Everything a newcomer needs: `make serve` runs the server, `make test` runs every test. Both do their own set-up.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: serve test lint types reference performance audit sbom clean

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

# Known vulnerabilities of every pinned version. It asks an advisory service over the network, so CI does not run it.
audit: $(VENV)-audit/ready
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

# The software bill of materials of what is shipped, in CycloneDX: dist/sbom.cdx.json.
sbom: $(VENV)-audit/ready
	rm -rf $(VENV)-shipped && scripts/make-venv $(PYTHON) $(VENV)-shipped
	$(VENV)-shipped/bin/pip install --quiet --constraint constraints.txt .
	$(VENV)-shipped/bin/pip uninstall --quiet --yes setuptools pip
	mkdir -p dist
	$(VENV)-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.cdx.json $(VENV)-shipped

$(VENV)-audit/ready: pyproject.toml constraints.txt
	scripts/make-venv $(PYTHON) $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet --constraint constraints.txt --editable '.[audit]'
	touch $@

$(VENV)/ready: pyproject.toml constraints.txt
	scripts/make-venv $(PYTHON) $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-shipped dist/sbom.cdx.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
