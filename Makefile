# What developers and operators type. Every target sets up what it needs first: see scripts/set_up.sh.
# ARGS goes to the program that a target runs: make test ARGS='tests/unit -k decimals'

SHELL := /bin/bash
ARGS ?=
PYTHON := .venv/bin/python
# Two processes for each core: half of the time a test waits for something.
PYTEST := -m pytest -n $(shell echo $$((2 * $$(nproc)))) --dist load --maxschedchunk 1
# uv keeps the versions that are locked already, unless told: make lock ARGS=--upgrade
LOCK := .venv/bin/uv pip compile pyproject.toml --quiet --no-config --system-certs --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command 'make lock' $(ARGS)

# Without it, pyright asks the network for a newer pyright.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# With it, every process compiles our sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-guard chaos coverage fuzz model lock clean contestants set-up

help: ## Say what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: set-up ## Watch orders go through, on a Redis and a Postgres of its own
	$(PYTHON) -m worker demo $(ARGS)

test: check ## Check, then run the tests against real servers
	$(PYTHON) $(PYTEST) --ignore=tests/load --ignore=tests/chaos/full $(ARGS)

check: set-up ## Check layout, lint, types and shell scripts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath $(PYTHON)
	.venv/bin/shellcheck scripts/*.sh .ci/run

bench: contestants ## Measure throughput against others; for the rest see ARGS=--help
	$(PYTHON) -m tests.load.bench $(ARGS)

bench-guard: set-up ## Compare speed with the last committed figures, stage by stage
	$(PYTHON) -m tests.load.bench guard $(ARGS)

chaos: set-up ## Run every failure test, the long ones too
	$(PYTHON) $(PYTEST) --timeout 0 tests/chaos $(ARGS)

fuzz: set-up ## Fuzz the parser, guided by coverage (Linux on x86-64); ARGS='--seconds 600 --keep'
	@.venv/bin/uv pip install --quiet --no-config --system-certs --python $(PYTHON) --require-hashes -r requirements-fuzz.lock
	$(PYTHON) -m tests.fuzz.fuzz_order $(ARGS)

coverage: set-up ## Say which branches of worker and streams no test takes; below 95 % is an error
	rm -rf .coverage-data
	$(PYTHON) -m coverage run $(PYTEST) --ignore=tests/load --ignore=tests/chaos/full $(ARGS)
	$(PYTHON) -m coverage combine --quiet
	$(PYTHON) -m coverage report

model: ## Check the model of the protocol, with Spin (needs gcc)
	scripts/check_model.sh

lock: set-up ## Lock the versions that pyproject.toml allows
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra embedded --extra test --extra check --output-file requirements-dev.lock
	$(LOCK) --extra fuzz --constraint requirements-dev.lock --output-file requirements-fuzz.lock
	$(LOCK) --extra bench --constraint requirements-dev.lock --output-file requirements-bench.lock

clean: ## Remove what the other targets made
	rm -rf .venv .services .pytest_cache .ruff_cache .hypothesis .coverage-data
	find . -name __pycache__ -prune -exec rm -rf {} +

# What `make bench` compares with, and no other target needs.
contestants: set-up
	@.venv/bin/uv pip install --quiet --no-config --system-certs --python $(PYTHON) --require-hashes -r requirements-bench.lock

set-up:
	@scripts/set_up.sh
