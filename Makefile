# Every command makes what it needs: the environment from the lock first, then the rest.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
export PYTHON
VENV   := .venv
BIN    := $(VENV)/bin
SEEDS  ?= 100
FUZZ_S ?= 300

.DEFAULT_GOAL := help
.PHONY: help run test lint types simulate fuzz faults bench lock clean

help:            ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

$(VENV)/.run: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Depesche needs Python 3.11 or newer and found none; set PYTHON=/path/to/python"; exit 1; }
	@.ci/prepare run
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing from requirements.lock ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@echo "installing from requirements-dev.lock ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

run: $(VENV)/.run  ## start everything in one process, with a sandbox instead of Meta; ARGS="--base-port 28100" elsewhere
	@exec $(BIN)/depesche run $(ARGS)

test: $(VENV)/.dev  ## the whole suite, on a real Kafka and in a real browser; ARGS="-n 0 tests/core" for a part
	@.ci/prepare test
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev  ## style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## strict types
	@$(BIN)/mypy

simulate: $(VENV)/.dev  ## SEEDS=1000 seeds of the deterministic simulation
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

fuzz: $(VENV)/.dev  ## FUZZ_S=300 seconds of two fuzzers against a running gateway
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

faults: $(VENV)/.dev  ## what is done to real processes, with its full numbers (hours), into benchmarks/results
	@.ci/prepare test
	@$(BIN)/python -m tests.faults $(ARGS)

bench: $(VENV)/.dev  ## first figures, side by side, into benchmarks/results
	@.ci/prepare test
	@$(BIN)/python -m benchmarks

lock: $(VENV)/.dev  ## resolve dependencies anew into the two lock files
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv lock --quiet
	@$(BIN)/uv export --quiet --no-emit-project --no-annotate --no-header --no-dev --group build > requirements.lock
	@$(BIN)/uv export --quiet --no-emit-project --no-annotate --no-header > requirements-dev.lock
	@rm -f uv.lock

clean:           ## remove what the commands above made, but for data/
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
