# `make help` lists what there is. All of it happens in this folder; TORCH names another build of torch (a wheel, a
# version, options of pip), PYTHON another Python, WORKERS another number of test processes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
PYTHON ?= python3
TORCH ?= $(shell cat requirements/torch.txt)
WORKERS ?= $(shell nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools
PIP := -m pip --disable-pip-version-check --quiet
# Most modules of a package are never imported. Python compiles one at its first import and keeps the result, which takes
# 14 s of processor time here; compiling all of them takes 61 s.
INSTALL := $(PIP) install --no-compile
unexport PYTHONDONTWRITEBYTECODE
export MYPY_NUM_WORKERS := auto

LOCKED := requirements/locked.txt
DOCUMENTS := $(shell find . -name '.?*' -prune -o -name node_modules -prune -o -name runs -prune -o \
  -name '*.md' -print -o -path './docs/*' -print)
EXAMPLE := $(filter-out %.md, $(wildcard examples/plain-answers/*))
SOURCES := $(shell find src -name '*.py' -o -name '*.css' -o -name '*.json')
CHECKED := $(SOURCES) $(EXAMPLE) Makefile $(shell find builder skill tests benchmarks scripts requirements -type f \
  -not -path '*/node_modules/*' -not -name '*.pyc' -not -name '*.md')

# $(call half,VERSIONS,0 or 1): every other package of a list, as a file
half = <(awk '/^[a-zA-Z]/ {n++} n % 2 == $(2)' $(1))
# $(call install,ENVIRONMENT,VERSIONS): what the list names and torch as TORCH says, on two cores; then this project.
# A list is complete, so that pip resolves nothing. Asked for torch again, pip adds what its wheel alone needs.
define install
$(PYTHON) -m venv $(1)
$(1)/bin/python $(INSTALL) --no-deps --require-hashes --requirement $(call half,$(2),0) & \
  $(1)/bin/python $(INSTALL) --no-deps --require-hashes --requirement $(call half,$(2),1) && \
  $(1)/bin/python $(INSTALL) --no-deps $(TORCH) && wait $$!
$(1)/bin/python $(INSTALL) $(TORCH)
$(1)/bin/python $(INSTALL) --no-deps --no-build-isolation --editable .
$(1)/bin/python $(PIP) check
endef

# $(call tests,ENVIRONMENT,NAME): all tests, then those that run Triton's kernels in its interpreter; NAME goes into the record
define tests
OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not long" --record=$(1)/record-$(2).json
OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(1)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "kernels and not long" --record=$(1)/record-$(2)-interpreter.json tests/ops
endef

.PHONY: help demo lint quick test soak gpu newest oldest families lock versions docs clean
help:
	@echo "make demo     train a small real model on the CPU and show what changed"
	@echo "make lint     ruff, format and types"
	@echo "make quick    lint and the short tests: before each commit"
	@echo "make test     lint and all tests; after a change of documentation alone, only its tests"
	@echo "make soak     the long tests, then runs killed and files damaged for hours; KILLS=300 FUZZED=10000 says how many"
	@echo "make gpu      the tests of kernels and of whole steps on a CUDA device"
	@echo "make newest   all tests with the newest versions that pyproject.toml allows, in .venv-newest"
	@echo "make families try every family of transformers and write docs/families.md; make newest does so, too"
	@echo "make oldest   all tests with the lowest, in .venv-oldest"
	@echo "make lock     write requirements/*.txt; with LOCK=--upgrade take the newest versions"
	@echo "make versions write what the last runs tested into docs/versions.md"
	@echo "make docs     build the documentation as a site in runs/site; every link is checked"
	@echo "make clean    remove all environments and runs"

demo: runs/plain-answers/demo.txt
	@cat $<

runs/plain-answers/demo.txt: $(VENV)/installed $(SOURCES) $(EXAMPLE)
	@rm -rf $(@D)
	@$(BIN)/wishbone train examples/plain-answers/run.yaml
	@COLUMNS=100 $(BIN)/wishbone report $(@D) > $@.partial
	@mv $@.partial $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not long" \
	  --durations=8 --durations-min=1

test: $(VENV)/documented
	@echo "lint, types and tests are green"

# While types are checked for the first time, the tests are collected: that compiles what they import and rewrites their
# assertions, 25 s of processor time, which each process of pytest would do for itself.
$(VENV)/tested: $(VENV)/installed builder/node_modules/asked-for $(CHECKED) pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	[ -e $(VENV)/record-locked.json ] || $(BIN)/python -m pytest --collect-only --quiet > /dev/null & \
	  $(BIN)/mypy && wait $$!
	$(call tests,$(VENV),locked)
	@touch $@

# Tests read documentation, too. After a change of documentation alone, only these run.
$(VENV)/documented: $(DOCUMENTS) $(VENV)/tested
	@if [ -n "$$(find $(DOCUMENTS) -newer $(VENV)/tested)" ]; then \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "documents and not long"; fi
	@touch $@

# Results go to soak-newcomer.json, soak-kills.json, soak-launched.json and soak-files.json in runs; SEED makes other
# kills and other files.
KILLS ?= 300
FUZZED ?= 10000
SEED ?= 0
soak: $(VENV)/installed builder/node_modules/asked-for
	@mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "kernels and long" tests/ops
	cd tests && ../$(BIN)/python -m soak.newcomer --out ../runs/soak-newcomer.json
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m soak.kills --kills $(KILLS) --seed $(SEED) --out ../runs/soak-kills.json
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m soak.launched --out ../runs/soak-launched.json
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m soak --count $(FUZZED) --seed $(SEED) --out ../runs/soak-files.json

gpu: $(VENV)/installed
	$(BIN)/python -m pytest --record=$(VENV)/record-gpu.json tests/gpu tests/ops

newest: RESOLUTION := highest
oldest: RESOLUTION := lowest-direct
newest oldest: $(TOOLS)/installed builder/node_modules/asked-for
	rm -rf .venv-$@
	mkdir .venv-$@
	$(TOOLS)/bin/python scripts/write_locks.py --resolution $(RESOLUTION) --python $(PYTHON) --out .venv-$@/versions.txt
	$(call install,.venv-$@,.venv-$@/versions.txt)
	$(call tests,.venv-$@,$@)
	@if [ $@ = newest ]; then $(MAKE) families FAMILIES_FROM=.venv-newest; fi

# Every family of transformers, tiny, for one step: how it runs and whether its loss is right, into docs/families.md.
FAMILIES_FROM ?= $(VENV)
families:
	$(FAMILIES_FROM)/bin/python scripts/sweep_families.py

lock: $(TOOLS)/installed
	$(TOOLS)/bin/python scripts/write_locks.py $(LOCK)

versions: $(VENV)/installed
	$(BIN)/python scripts/document_versions.py

# In an environment of its own: the site needs nothing of Wishbone.
DOCS := .venv-docs
docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs --quiet build --strict
	@echo "the site is in runs/site/index.html; browsers allow its search only from a server:"
	@echo "  python3 -m http.server --bind 127.0.0.1 --directory runs/site"

$(DOCS)/installed: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(INSTALL) --no-deps --require-hashes --requirement $<
	@touch $@

$(VENV)/installed: $(LOCKED) pyproject.toml
	$(call install,$(VENV),$(LOCKED))
	@touch $@

$(TOOLS)/installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(INSTALL) --no-deps --require-hashes --requirement $<
	@touch $@

# What drives Chromium in the tests of the planner page; they are skipped where it cannot be had.
builder/node_modules/asked-for: builder/package-lock.json
	@mkdir -p $(@D)
	@cd builder && npm ci --silent --no-audit --no-fund --ignore-scripts --fetch-retries 1 --fetch-timeout 30000 \
	  || echo "playwright-core cannot be installed here: the planner page is not tested in Chromium"
	@mkdir -p $(@D) && touch $@

clean:
	rm -rf .venv .venv-* builder/node_modules runs .pytest_cache .mypy_cache .ruff_cache
