# Two commands for a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LIBRARY := $(wildcard pyproject.toml requirements*.txt)

.PHONY: demo test test-all lint ledger clean

demo: $(VENV)/run.done
	$(BIN)/python -m experiments.class_forgetting

# One thread a worker: scikit-learn's own would fight those of the other workers.
test: $(VENV)/test.done lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu"

test-all: $(VENV)/parity.done lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis *.egg-info
