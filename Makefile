# The commands of the project; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# What pip installs as PyTorch. The default index may serve a CUDA build of several gigabytes;
# where no GPU is wanted, point pip to PyTorch's index of CPU wheels:
#   make setup TORCH_SPEC="torch==2.13.0 --index-url <URL of the CPU wheels>"
TORCH_SPEC ?= torch==2.13.0
PYTEST_ARGS ?= -n 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.tracelens-setup
SOURCES := src plugins tui tests examples benchmarks

# One thread a process: two test workers on two cores must not fight over them.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv and install everything (does nothing if up to date)

# PyTorch goes first and alone, so that the second command finds it and asks for no other build.
$(STAMP): pyproject.toml $(wildcard hatch_build.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_SPEC)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Train a small network into a real NaN and see its first cause
	$(BIN)/python examples/digits_nan.py

lint: $(STAMP) ## Check style and import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

types: $(STAMP) ## Check types
	$(BIN)/python -m mypy

test: lint types ## Run every check and test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(STAMP) ## Run the benchmarks; each prints its figures
	@for script in benchmarks/[!_]*.py; do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(STAMP) ## Draw the pictures and the page of commands from what the program does today
	$(BIN)/python docs/make_picture.py
	$(BIN)/python docs/make_screenshots.py
	$(BIN)/python docs/make_report_pictures.py
	$(BIN)/python -m tracelens.commands > docs/commands.md

site: $(STAMP) ## Build the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## Remove caches and the environment
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.PHONY: help setup demo lint types test bench docs site clean
