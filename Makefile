# Everything here works on a machine with Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH_VENV := .venv-bench
LOCK_VENV := .venv-lock
# Not editable, and without the tools that develop xformd: what a stranger's machine would have.
STRANGER_VENV := .venv-stranger
STRANGER_BIN := $(STRANGER_VENV)/bin
PLUGINS := $(wildcard plugins-example/xformd-*)

LOCK := requirements/dev.txt
INSTALL = -m pip install --quiet --constraint $(LOCK)
# The processes that tests start find everything compiled, also where nothing may be written beside the sources; so what
# pip compiles would not be used.
COMPILED := PYTHONPYCACHEPREFIX=$(CURDIR)/$(VENV)/compiled PYTHONDONTWRITEBYTECODE=
PYTEST := $(COMPILED) $(BIN)/python -m pytest $(if $(COVERAGE),--cov --cov-append --cov-report= --cov-fail-under=0)
# Everything anew: what pages are made from is not the pages alone.
SPHINX := $(COMPILED) $(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --jobs 2 --conf-dir docs --doctree-dir docs/_build/.doctrees .
# Some everyday tests wait for processes and timeouts; slow ones do for most of their time.
CPUS := $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 2)')
EVERYDAY_PROCESSES := $(shell echo $$(($(CPUS) + 1)))
SLOW_PROCESSES := $(shell echo $$(($(CPUS) * 2)))
# The Python versions that xformd supports; test-all-pythons looks for them in PATH and in pyenv.
VERSIONS := 3.11 3.12 3.13
PYENV_ROOT ?= $(HOME)/.pyenv

.DEFAULT_GOAL := help
.PHONY: help test lint unit test-slow slow timing coverage test-all-pythons plugins demo demo-poems demo-cluster bench fuzz soak screenshots docs docs-links lock clean python

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

test: $(VENV)/installed ## Run the linters, the type checker and the everyday tests, side by side
	@$(MAKE) --no-print-directory --jobs=2 lint unit

lint: $(VENV)/installed ## Run ruff, mypy and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/installed ## Run the everyday tests
	$(PYTEST) --numprocesses=$(EVERYDAY_PROCESSES) --dist=loadgroup -m 'not slow and not timing' --max-processes=1300

test-slow: ## Run the slow tests, the timed tests alone, and the example plugins' tests
	@$(MAKE) --no-print-directory slow
	@$(MAKE) --no-print-directory timing
	@$(MAKE) --no-print-directory plugins

slow: $(VENV)/installed
	$(PYTEST) --numprocesses=$(SLOW_PROCESSES) --dist=loadgroup -m 'slow and not timing'

timing: $(VENV)/installed
	$(COMPILED) $(BIN)/python -m pytest -m timing

coverage: $(VENV)/installed ## Run both suites, and fail if they cover too little
	$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test test-slow COVERAGE=1
	$(BIN)/coverage report

test-all-pythons: ## Run the everyday tests on every supported Python that is installed
	@for version in $(VERSIONS); do \
		for python in python$$version $(PYENV_ROOT)/versions/$$version.*/bin/python none; do \
			"$$python" -c '' 2> /dev/null && break; \
		done; \
		if [ "$$python" = none ]; then echo "Python $$version is not installed: skipped"; continue; fi; \
		echo "Python $$version: $$python"; \
		$(MAKE) --no-print-directory unit VENV=.venv-$$version PYTHON="$$python" || exit 1; \
	done

plugins: $(STRANGER_VENV)/installed ## Test the example plugins, installed as a stranger would install them
	@$(MAKE) --no-print-directory --jobs=2 --output-sync $(PLUGINS:%=tested/%)
	$(STRANGER_BIN)/xformd check

tested/%: # a plugin's folder
	cd $* && $(CURDIR)/$(STRANGER_BIN)/python -m pytest

demo: $(STRANGER_VENV)/installed ## Show what xformd is for: real work, what hangs and crashes, an upgrade under load
	@PATH="$(CURDIR)/$(STRANGER_BIN):$$PATH" bash demo/demo.sh

demo-poems: $(STRANGER_VENV)/installed ## Start poem servers, a proxy and a transform server, and send poems through them
	@PATH="$(CURDIR)/$(STRANGER_BIN):$$PATH" bash demo/demo-poems.sh

demo-cluster: $(STRANGER_VENV)/installed ## Run three servers behind HAProxy: kill one, upgrade the others, lose nothing
	@PATH="$(CURDIR)/$(STRANGER_BIN):$$PATH" bash demo/demo-cluster.sh

bench: $(BENCH_VENV)/installed ## Compare xformd with its peers; print every figure in the README
	$(BENCH_VENV)/bin/python -m benchmarks

fuzz: $(VENV)/installed ## Fuzz the HTTP API from its OpenAPI description with schemathesis, for a few minutes
	FUZZ_EXAMPLES=100 $(BIN)/python -m pytest tests/integration/test_fuzzing.py

soak: $(VENV)/installed ## Load a server with hostile transforms for three minutes; fail if it breaks a promise
	$(BIN)/python tests/soak.py

screenshots: $(VENV)/installed ## Take the README's screenshots of the page, in Chromium
	XFORMD_PICTURES=1 $(BIN)/python -m pytest tests/browser/test_look_of_the_page.py -k pictures

docs: $(VENV)/installed ## Build the site of the documentation in docs/_build; a warning is an error
	$(SPHINX) docs/_build

docs-links: $(VENV)/installed ## Check the links to other sites too; needs a network
	$(SPHINX) -b linkcheck docs/_build/links

lock: $(LOCK_VENV)/installed ## Lock the newest versions of everything that develops, tests and benchmarks xformd
	$(LOCK_VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 pyproject.toml \
		--all-extras --group dev --group bench --no-annotate --custom-compile-command 'make lock' --output-file $(LOCK)

clean: ## Remove everything that these targets have made
	rm -rf $(VENV) .venv-* .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache docs/_build

$(VENV)/installed: pyproject.toml $(LOCK) | python
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(INSTALL) --upgrade pip
	$(BIN)/python $(INSTALL) --no-compile --build-constraint $(LOCK) --editable '.[otel,tls]' --group dev
	touch $@

$(BENCH_VENV)/installed: pyproject.toml $(LOCK) | python
	$(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python $(INSTALL) --upgrade pip
	$(BENCH_VENV)/bin/python $(INSTALL) --build-constraint $(LOCK) --editable . --group bench
	touch $@

$(STRANGER_VENV)/installed: $(shell find xformd twistd plugins-example -name '*.py' -o -name pyproject.toml) pyproject.toml $(LOCK) | python
	$(PYTHON) -m venv --clear $(STRANGER_VENV)
	$(STRANGER_BIN)/python $(INSTALL) --upgrade pip
	$(STRANGER_BIN)/python $(INSTALL) --build-constraint $(LOCK) . $(foreach plugin,$(PLUGINS),'./$(plugin)[test]')
	touch $@

# Not locked: it makes the lock.
$(LOCK_VENV)/installed: | python
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet uv
	touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xformd needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
