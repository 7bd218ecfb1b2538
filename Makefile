# make demo    the whole job on SmolLM2-135M, on a CPU (examples/smollm2-zh)
# make test    lint, then every test, in environments that it makes itself
# make lint    ruff and mypy
# make clean   what the above made, but for fetched inputs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# transformers of ColossalAI's generation, for the tests that compare versions
VENV4 := .venv-transformers4
INPUTS ?= $(HOME)/.cache/llmforge/inputs
OUTPUT ?= demo

export LLMFORGE_INPUTS := $(INPUTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/python tools/real_inputs.py smollm2 demo
	$(BIN)/llmforge run examples/smollm2-zh/recipe.yaml --set inputs=$(INPUTS) --set output=$(OUTPUT)

test: lint $(VENV4)/stamp
	LLMFORGE_PYTHON_TRANSFORMERS4=$(abspath $(VENV4))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml requirements/constraints.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e .[demo]
	touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml requirements/constraints.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e .[dev,demo]
	touch $@

$(VENV4)/stamp: pyproject.toml requirements/constraints.txt requirements/transformers4.txt
	$(PYTHON) -m venv $(VENV4)
	$(VENV4)/bin/python -m pip install -q -c requirements/constraints.txt -r requirements/transformers4.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV4) $(OUTPUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
