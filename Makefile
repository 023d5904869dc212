# Everything sets up its own environment in .venv first; Python 3.11 or newer is all it needs.
PYTHON ?= python3
# Another build of torch: make install TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH ?= $(shell grep '^torch==' constraints.txt)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-all check clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/installed ## Set up .venv with the package and the tools of development

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check \
		-c .venv/constraints.txt -e '.[dev]'
	@touch $@

quickstart: install ## Train, export and try a first model: about five minutes on two CPU cores
	$(BIN)/python -m neobert_train +experiment=quickstart
	$(BIN)/python -m neobert_train export run_dir=runs/quickstart
	$(BIN)/python scripts/fill_mask.py runs/quickstart/export

test: install ## Run the tests (under 20 minutes on two CPU cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Those that start the program many times, or the compiler.
LONG := tests/training tests/commands tests/models/test_compilation.py tests/test_benchmarks.py \
	tests/test_sweep.py tests/test_hub.py

test-fast: install ## Run the tests that start no training (about five minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(LONG))

test-all: install ## Run all tests, the slow ones too
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ""

check: install ## Lint, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove the environment, caches and build products (not runs/)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
