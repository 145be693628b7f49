# Two commands matter: `make demo` and `make test`. Each does all the set-up it needs, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Half the machine's work is done by torch's own threads; two test processes share two cores best with one thread each.
WORKERS ?= 2

.PHONY: demo demo-unlabelled test test-slow lint format bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/selfdistill run digits --label-noise 0.4 --out runs/demo

demo-unlabelled: $(READY)
	$(BIN)/selfdistill run digits --labels 100 --method 'curriculum()' --out runs/demo-unlabelled

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --doctest-modules selfdistill tests

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m slow

bench: $(READY)
	$(BIN)/python -m benchmarks.speed steps

clean:
	rm -rf $(VENV) runs build dist
