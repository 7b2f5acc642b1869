# make demo   environment, install, train a real small model on CPU, show what changed
# make test   environment, lint, types, tests
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -name '*.py' -o -name '*.css' -o -name '*.json')
EXAMPLE := $(wildcard examples/plain-answers/*)
SHARED := $(shell find builder skill references -type f -not -path '*/node_modules/*')
CHECKED := $(SOURCES) $(EXAMPLE) $(SHARED) $(shell find tests benchmarks scripts docs -type f -not -name '*.pyc') README.md Makefile

.PHONY: demo test clean
demo: runs/plain-answers/demo.txt
	@cat $<

runs/plain-answers/demo.txt: $(VENV)/installed $(SOURCES) $(EXAMPLE)
	@rm -rf $(@D)
	@$(BIN)/wishbone train examples/plain-answers/run.yaml
	@COLUMNS=100 $(BIN)/wishbone report $(@D) > $@.partial
	@COLUMNS=100 $(BIN)/wishbone compare $(@D) >> $@.partial
	@mv $@.partial $@

test: $(VENV)/tested
	@echo "lint, types and tests are green"

$(VENV)/tested: $(VENV)/installed builder/node_modules/asked-for $(CHECKED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/ops
	@touch $@

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# What drives Chromium in the tests of the planner page; they are skipped where it cannot be had.
builder/node_modules/asked-for: builder/package-lock.json
	@mkdir -p $(@D)
	@cd builder && npm ci --silent --no-audit --no-fund --ignore-scripts --fetch-retries 1 --fetch-timeout 30000 \
	  || echo "playwright-core cannot be installed here: the planner page is not tested in Chromium"
	@mkdir -p $(@D) && touch $@

clean:
	rm -rf $(VENV) builder/node_modules runs .pytest_cache .mypy_cache .ruff_cache
