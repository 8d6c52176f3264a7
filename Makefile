PYTHON ?= python3
BIN := .venv/bin
# CPU=1: PyTorch without the GPU libraries, 2 GB in place of 6.
TORCH := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)
TESTS ?= tests benchmarks/tests

.PHONY: demo test soak slow lint

demo: .venv/installed
	$(BIN)/datadream run --recipe digits --run runs/demo

# Files in their order: xdist would begin with those of many tests, and the longest files have few.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: .venv/installed
	$(BIN)/pytest -m 'soak and not gpu' $(TESTS)

slow: .venv/installed
	$(BIN)/pytest -m 'slow and not gpu'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in [(3, 11), (3, 12)] and f"Python {v[0]}.{v[1]} found: need 3.11 or 3.12. Use: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH) --constraint constraints.txt --editable '.[dev]'
	touch $@
