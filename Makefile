# The words a developer types; CI types the same ones (.ci/run).
PYTHON ?= python3
BIN := .venv/bin
export PYTHON

.PHONY: help setup demo digits up test check soak bench lock package provision deploy images promote clean

help:
	@echo "make demo       play fourteen weeks of flights: drops, trainings, verdicts, swaps (3 minutes)"
	@echo "make digits     four weeks of handwritten digits for a network in PyTorch, which it fetches the first time"
	@echo "make up         run the platform on this machine until Ctrl-C"
	@echo "make test       all tests                       make soak    the long proofs (hundreds of kills)"
	@echo "make check      format, lint, types, contracts  make bench   all benchmarks"
	@echo "make package    what is deployed to Azure: dist/app, dist/app.zip"
	@echo "make provision  the infrastructure of an azd environment     make deploy   the package into it"
	@echo "make images     serving and training images in its registry  make promote  a pipeline or a model version"
	@echo "make lock       pin every dependency again      make clean   remove what the others made"

setup:
	@scripts/setup.sh

demo: setup
	@$(BIN)/python -m examples.flights.demo

digits: setup
	@python=$$(scripts/torch.sh) && "$$python" -m examples.digits.demo

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

package: setup
	@$(BIN)/python scripts/package.py

provision:
	@scripts/azure.sh provision

deploy:
	@scripts/azure.sh deploy

images:
	@scripts/images.sh

promote: setup
	@scripts/promote.sh

clean:
	rm -rf .venv .venv-runtime .dropforge .dropforge-cache .demo dist build .mypy_cache .ruff_cache .hypothesis .import_linter_cache
