# Two commands are all the set-up there is: `make quickstart` and `make test`. Both create .venv if needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Empty: the newest versions that can be had.
CONSTRAINTS ?= constraints.txt
# Idle OpenMP threads that spin slow down every other process on a small machine.
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0

.PHONY: quickstart continual-quickstart test test-slow documents conformance docs lint dist main-branches notebook install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	touch $@

# For a nightly run: what the next releases of transformers and peft will do to us; `make test` follows.
main-branches: CONSTRAINTS =
main-branches: install
	$(BIN)/pip install --quiet --upgrade git+https://github.com/huggingface/transformers git+https://github.com/huggingface/peft

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

# The documentation site, in site/; a warning is an error, which --quiet would hide from --strict.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# After a change of docs/fifty_images.md.
notebook: install
	$(BIN)/python .ci/notebook.py

# Wheel and source distribution in dist/; TAG=v0.2.0 refuses where version or changelog say otherwise.
dist: install
	rm -rf dist
	$(BIN)/python .ci/build.py dist $(TAG)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .conformance runs site
