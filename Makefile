# make demo    the whole job on SmolLM2-135M, on a CPU (examples/smollm2-zh)
# make test    lint, then every test, in environments that it makes itself
# make lint    ruff, mypy and import-linter
# make stress  kills, signals, damage and full disks over all commands, two hosts, then FUZZ_MINUTES of fuzzing; figures in docs/reliability.md
# make clean   what the above made, but for fetched inputs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# ColossalAI and the transformers of its generation: for its engine, and for the tests that compare versions
VENVC := .venv-colossalai
INPUTS ?= $(HOME)/.cache/llmforge/inputs
OUTPUT ?= demo
FUZZ_MINUTES ?= 60

export LLMFORGE_INPUTS := $(INPUTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast stress lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/python tools/real_inputs.py smollm2 demo
	$(BIN)/llmforge run examples/smollm2-zh/recipe.yaml --set inputs=$(INPUTS) --set output=$(OUTPUT)

# The second environment is made while lint runs.
test:
	$(MAKE) -j 2 --output-sync=target lint $(VENVC)/stamp
	LLMFORGE_PYTHON_TRANSFORMERS4=$(abspath $(VENVC))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	OMP_NUM_THREADS=1 $(VENVC)/bin/python -m pytest -n 2 --dist loadfile tests/train/colossalai tests/launch -k colossal

test-fast: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m "not slow and not stress"

stress: $(VENV)/test.stamp $(VENVC)/stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m stress -s
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/launch/test_two_hosts.py
	OMP_NUM_THREADS=1 $(VENVC)/bin/python -m pytest -m "" tests/launch -k colossal
	$(BIN)/python tools/fuzz.py --minutes $(FUZZ_MINUTES)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml requirements/constraints.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e .[demo]
	touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml requirements/constraints.txt
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e .[dev,demo]
	touch $@

$(VENVC)/stamp: pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) -m venv --clear $(VENVC)
	$(VENVC)/bin/python -m pip install -q -c requirements/constraints.txt -r requirements/colossalai-environment.txt
	$(VENVC)/bin/python -m pip install -q --no-deps -r requirements/colossalai.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENVC) $(OUTPUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
