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

# A file's tests run on one worker, in the order of their names: by default the files with the fewest
# tests come last, which are those with the longest. Three keep two cores busy, since some tests wait;
# they take eight gigabytes of memory together.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: install ## Run the tests (about ten minutes on two CPU cores)
	$(PYTEST)

# Those that start programs or workers, compile, train, compose or simulate many times.
LONG := training commands config/test_shipped_configs.py data/shards/test_prepared.py \
	data/sources/test_text_units.py data/test_loader.py data/test_remote_sources.py \
	evaluation/test_mteb_tasks.py evaluation/test_resampling.py evaluation/test_state_of_the_union.py \
	evaluation/test_statistics.py modeling/test_fused_cross_entropy.py models/test_compilation.py \
	models/test_hugging_face.py models/test_memory.py models/test_remote_code.py \
	tokenizers/test_long_texts.py tokenizers/test_special_tokens.py tokenizers/test_training.py \
	tuning/test_embedding.py tuning/test_finetuning.py test_benchmarks.py test_check_on_gpu.py \
	test_command_line.py test_compatibility.py test_documentation.py test_signals.py test_sweep.py \
	test_terminal.py

test-fast: install ## Run the quick part of the tests (under three minutes on two free cores)
	$(PYTEST) $(addprefix --ignore=tests/,$(LONG))

test-all: install ## Run all tests, the slow ones too
	$(PYTEST) -m ""

check: install ## Lint, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove the environment, caches and build products (not runs/)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
