# `make demo` and `make test` need Python 3.11+ and a package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/lora-mnist run

test: .venv/installed-test lint
	$(BIN)/python -m pytest

# every claim of speed, on MNIST in data/ or LORA_MNIST_DATA; half an hour on two cores
bench: .venv/installed-test
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/commands.py
	$(BIN)/python benchmarks/switches.py
	$(BIN)/python benchmarks/pipeline.py
	for part in step speed equal grow grid; do $(BIN)/python benchmarks/sweep.py $$part || exit 1; done

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch goes first and alone, so that a build for this machine, once chosen, is kept for everything after it
.venv/torch: .venv/bin/python constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	touch $@

.venv/installed: .venv/torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,ray]'
	touch $@

clean:
	rm -rf .venv runs build .pytest_cache .ruff_cache
