# `make demo` and `make test` make the environment in .venv when it is missing; nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export FLWR_TELEMETRY_ENABLED := 0
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test slow check docs clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/ready

demo: .venv/ready
	$(BIN)/oblivion run

test: .venv/ready
	$(BIN)/pytest -n 2

slow: .venv/ready
	$(BIN)/pytest -m slow -n 2

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready
	$(BIN)/mkdocs build
	@echo "The site is in build/site/index.html"

clean:
	rm -rf .venv build dist *.egg-info
