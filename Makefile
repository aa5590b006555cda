# Everything a person or a pipeline types. Each goal sets itself up first (see .ci/setup); a second
# call finds the stamp and installs nothing.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out
BIN    := $(VENV)/bin
# Files of tests side by side, one process a core and four at most: each may hold a gigabyte.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-rtx check lint bench docs clean setup-demo setup-dev

help:  ## what can be typed
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

setup-demo:
	@PYTHON="$(PYTHON)" .ci/setup "$(VENV)" demo

setup-dev:
	@PYTHON="$(PYTHON)" .ci/setup "$(VENV)" dev

demo: setup-demo  ## compress and judge the example model (Fashion-MNIST) for two engines
	$(BIN)/compress run examples/01_image_classifier/recipe.yaml --effort quick -o $(OUT)/demo

test: setup-dev  ## every test (about fifteen minutes on two cores)
	$(PYTEST)

test-fast: setup-dev  ## those not marked slow
	$(PYTEST) -m "not slow"

test-rtx: setup-dev  ## those of TensorRT-RTX, which compiles without a GPU (wheel of 95 MB, three minutes)
	@.ci/setup "$(VENV)" rtx
	PYTHONPATH="$(abspath $(VENV))/rtx" $(BIN)/python -m pytest -m rtx tests/exporters tests/e2e
	PYTHONPATH="$(abspath $(VENV))/rtx" $(BIN)/python -m pytest -k rtx tests/contract

lint: setup-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test-fast  ## style, types, layers, then the faster tests

bench: setup-dev  ## the benchmarks; each writes its figures as JSON beside its script
	@for script in benchmarks/*/run.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

docs: setup-dev  ## write docs/recipe.md again from the code
	$(BIN)/python -m compressor.docs > docs/recipe.md

clean:  ## remove what was built; the compression store in the user's cache folder stays
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
