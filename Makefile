# Everything here works on a machine with Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .venv-bench
GUEST_VENV := .venv-guest
GUEST_BIN := $(GUEST_VENV)/bin
PLUGINS := $(wildcard plugins-example/xformd-*)

.DEFAULT_GOAL := help
.PHONY: help test lint unit plugins demo bench fuzz soak screenshots clean

help: ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

test: lint unit plugins ## Check and test everything

lint: $(VENV)/installed ## Run ruff, mypy and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/installed ## Run the tests with coverage
	$(BIN)/coverage erase
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup -m 'not timing' --cov --cov-report=
	$(BIN)/python -m pytest -m timing
	$(BIN)/coverage report

plugins: $(GUEST_VENV)/installed ## Test the example plugins, installed as a stranger would
	for plugin in $(PLUGINS); do (cd $$plugin && $(CURDIR)/$(GUEST_BIN)/python -m pytest) || exit 1; done
	$(GUEST_BIN)/xformd check

demo: $(GUEST_VENV)/installed ## Start poem servers, a proxy and a transform server, and send poems through them
	@PATH="$(CURDIR)/$(GUEST_BIN):$$PATH" bash demo/demo.sh

bench: $(BENCH_VENV)/installed ## Measure xformd against its peers; print every figure that the README states
	$(BENCH_VENV)/bin/python -m benchmarks

fuzz: $(VENV)/installed ## Let schemathesis ask a running server whatever its description allows, for some minutes
	FUZZ_EXAMPLES=100 $(BIN)/python -m pytest tests/integration/test_fuzzing.py

soak: $(VENV)/installed ## Load a server with hostile transforms for three minutes; fail if a promise is broken
	$(BIN)/python tests/soak.py

screenshots: $(VENV)/installed ## Draw the README's pictures of the page, in Chromium
	XFORMD_PICTURES=1 $(BIN)/python -m pytest tests/browser/test_look_of_the_page.py -k pictures

clean: ## Remove what these commands have made
	rm -rf $(VENV) $(BENCH_VENV) $(GUEST_VENV) .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/installed: pyproject.toml | python
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[tls,http]' --group dev
	touch $@

$(BENCH_VENV)/installed: pyproject.toml | python
	$(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable '.[http]' --group bench
	touch $@

# Not editable, and apart from the tools above: what somebody else's machine would have.
$(GUEST_VENV)/installed: $(shell find xformd twistd plugins-example -name '*.py' -o -name pyproject.toml) pyproject.toml | python
	$(PYTHON) -m venv --clear $(GUEST_VENV)
	$(GUEST_BIN)/python -m pip install --quiet '.[proxy,http]' $(foreach plugin,$(PLUGINS),'./$(plugin)[test]')
	touch $@

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xformd needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
