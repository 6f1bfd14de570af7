# Needs Python 3.11, make and pip, and nothing else. `make` alone lists the commands.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
RUN := .venv/bin/python
# Extra arguments for pytest: make test ARGS="-k routing -x"
ARGS ?=
UPGRADE ?=

.PHONY: help
help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

.PHONY: env
env: ## Make the Python environment (shared by all clones) and .venv; quick when both are in place
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python 3.11 is needed and '$(PYTHON)' is not on the PATH." >&2; \
	  echo "Install it (Debian: apt-get install python3.11 python3.11-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -m scripts.bootstrap

.PHONY: up
up: env ## Build the models if need be, start the cluster, say when it is ready
	@.venv/bin/pointsman up

.PHONY: down
down: env ## Stop the cluster and every process of it
	@.venv/bin/pointsman down

.PHONY: test
test: env ## Build the models if need be, run the fast tests, then those on real engines
	@# Before the tests, whose time limits are not made for this; half a second when all is in place.
	@.venv/bin/pointsman models build --config infra/clusters/local.yaml
	@$(RUN) -m pytest -m "not slow" $(ARGS)

.PHONY: test-fast
test-fast: env ## Run only the tests that need no process
	@$(RUN) -m pytest -m "not slow and not integration" $(ARGS)

.PHONY: test-slow
test-slow: env ## Run the tests that take minutes, and those that measure
	@$(RUN) -m pytest -m slow $(ARGS)

.PHONY: lint
lint: env ## Check style, format, types and import rules
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo

.PHONY: check
check: lint ## Everything that CI runs: lint, then all tests, the slow ones last
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-slow

.PHONY: bench
bench: env ## Measure the cluster against the bare vLLM server
	@$(RUN) -m loadtests.bench $(ARGS)

.PHONY: fmt
fmt: env ## Format the code and mend what the linter can
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

.PHONY: lock
lock: ## Write requirements/ anew from pyproject.toml (needs uv; UPGRADE=1 moves to newer versions)
	@$(PYTHON) -m scripts.lock $(if $(UPGRADE),--upgrade)

.PHONY: clean
clean: ## Remove .venv, caches and results of this clone (the shared environment and the models stay)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache out dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Environment and models, shared by all clones, are in $${POINTSMAN_CACHE:-$$HOME/.cache/pointsman}."
