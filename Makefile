# The words a developer types; CI types the same ones (.ci/run).
PYTHON ?= python3
BIN := .venv/bin
export PYTHON

.PHONY: help setup demo up test check soak bench lock clean

help:
	@echo "make demo    play fourteen weeks of flights: drops, trainings, verdicts, swaps (3 minutes)"
	@echo "make up      run the platform on this machine until Ctrl-C"
	@echo "make test    all tests                       make soak   the long proofs (hundreds of kills)"
	@echo "make check   format, lint, types, contracts  make bench  all benchmarks"
	@echo "make lock    pin every dependency again      make clean  remove what the others made"

setup:
	@scripts/setup.sh

demo: setup
	@$(BIN)/python -m examples.flights.demo

up: setup
	@$(BIN)/dropforge up

test: setup
	@scripts/test.sh

soak: setup
	@$(BIN)/python -m pytest -m soak --timeout 3600

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup
	@set -e; for file in benchmarks/[a-z]*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

lock:
	@scripts/lock.sh

clean:
	rm -rf .venv .venv-runtime .dropforge .dropforge-cache .demo dist build .mypy_cache .ruff_cache .hypothesis .import_linter_cache
