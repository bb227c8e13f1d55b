# For a fresh machine with Python 3.11 or newer: `make demo`, `make test`, and `make docs` for the site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LIBRARY := $(wildcard pyproject.toml requirements*.txt)
# Workers share what they compile. One thread each: scikit-learn's own would fight the others'.
# XLA optimises less for the fast suite, most of whose time is its own; as ever for the whole.
QUICK := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
PYTEST := OMP_NUM_THREADS=1 JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/compiled \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
	$(BIN)/python -m pytest -n auto --dist loadfile

# Notebooks share what they compile too; two are run at a time.
SPHINX := JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3 \
	TFDS_DATA_DIR=$(abspath $(VENV))/tfds $(BIN)/python -m sphinx -W --keep-going -E -j 2 -b html

.PHONY: demo test test-all test-matrix docs lint ledger clean

demo: $(VENV)/run.done
	$(BIN)/python -m experiments.class_forgetting

test: $(VENV)/test.done lint
	XLA_FLAGS="$(QUICK)" $(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/parity.done lint docs
	$(PYTEST)

test-matrix:
	.ci/matrix

docs: $(VENV)/docs.done
	mkdir -p $(VENV)/tfds
	$(SPHINX) docs docs/_build/html

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/mypy

ledger: $(VENV)/run.done
	$(BIN)/python -m experiments.ledger

$(VENV)/run.done: $(LIBRARY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

$(VENV)/test.done: $(VENV)/run.done
	$(BIN)/python -m pip install --quiet -c requirements.txt -e ".[test]"
	touch $@

$(VENV)/parity.done: $(VENV)/test.done
	$(BIN)/python -m pip install --quiet -c requirements.txt -e ".[parity,flower]"
	touch $@

$(VENV)/docs.done: $(VENV)/run.done
	$(BIN)/python -m pip install --quiet -c requirements.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .matrix runs docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
