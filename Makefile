# Two commands are all the set-up there is: `make quickstart` and `make test`. Both create .venv if needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
# Idle OpenMP threads that spin slow down every other process on a small machine.
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0

.PHONY: quickstart continual-quickstart test test-slow documents conformance lint install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

quickstart: install
	rm -rf runs/quickstart
	HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --cpu --num_processes 1 recipes/train.py --config recipes/quickstart.yaml

continual-quickstart: install
	rm -rf runs/continual-quickstart
	HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --cpu --num_processes 1 recipes/continual.py \
		--config recipes/continual_quickstart.yaml

test: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not slow'

test-slow: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

# The code blocks of docs/; those of README are in `test`.
documents: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow \
		tests/test_documents.py tests/convert/annotations/test_own_data.py

conformance: install
	PEFT_TESTS_DIR="$$($(BIN)/python tests/conformance/fetch.py)" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 -q -rs --disable-warnings tests/conformance

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .conformance runs
