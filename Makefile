# Two commands matter: `make demo` and `make test`. Each installs what it needs into .venv; `make help` lists the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev
POLICY := $(VENV)/.policy
DOCS := $(VENV)/.docs
# Half the machine's work is done by torch's own threads; two test processes share two cores best with one thread each.
WORKERS ?= 2
# The environment is ours, and its modules are compiled once: without their bytecode every command would start in 14 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-unlabelled demo-policy test test-slow lint house golden bench docs docs-test format generate clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r target what; do printf 'make %-16s %s\n' "$$target" "$$what"; done

$(DEMO): pyproject.toml constraints.txt
	@tools/install.sh $(PYTHON) $(VENV) .
	@touch $(DEMO)

$(DEV): $(DEMO)
	@tools/install.sh $(PYTHON) $(VENV) '.[dev]'
	@touch $(DEV)

demo: $(DEMO) ## a minute: train an MLP on digits with 40 % wrong labels by elr(), beside plain training
	@echo "elr() (early-learning regularisation, a model taught by its own past) against plain(): digits, 40 % wrong labels"
	$(BIN)/selfdistill run digits --label-noise 0.4 --method 'elr()' --out runs/demo

demo-unlabelled: $(DEMO) ## the same with 100 labelled rows and the others unlabelled, by curriculum()
	@echo "curriculum() (pseudo-labels, the surest first) against plain(): digits, 100 rows with a label"
	$(BIN)/selfdistill run digits --labels 100 --method 'curriculum()' --out runs/demo-unlabelled

$(POLICY): $(DEMO)
	@tools/install.sh $(PYTHON) $(VENV) '.[control,images]' pygame-ce
	@touch $(POLICY)

demo-policy: $(POLICY) ## three minutes: a teacher that sees the whole state teaches a policy that sees two frames of CartPole
	@echo "privileged(): a teacher sees positions and velocities, its student two frames of positions; both beside two controls"
	$(BIN)/selfdistill run gym:selfdistill.control.environments:CartPoleFrames-v0 --sees state --steps 20000 --out runs/demo-policy

$(DOCS): $(DEMO)
	@tools/install.sh $(PYTHON) $(VENV) '.[docs]'
	@touch $(DOCS)

docs: $(DOCS) ## build the documentation site into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-test: $(DEV) docs ## build the site, check every link of it, and run the tutorials, the examples and the notebooks
	$(BIN)/python tools/site_links.py site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m 'slow or not slow' tests/test_docs.py tests/test_site.py

test: lint house ## all checks: lint, house and the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --doctest-modules selfdistill tests

test-slow: $(DEV) ## tests that take long: 480 kills, 5,000 mutated inputs, learning runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m slow

lint: $(DEV) ## formatting, style, types and the layers of the package
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

house: $(DEV) ## measure the architecture against its targets
	$(BIN)/python tools/house.py

golden: $(DEV) ## compare small runs with tests/golden.json, bit for bit: on the kind of processor that recorded them
	$(BIN)/python tools/golden.py check tests/golden.json

bench: $(DEV) ## measure the time of a training step against a bare loop
	$(BIN)/python -m benchmarks.speed steps
	$(BIN)/python -m benchmarks.speed loggers

format: $(DEV) ## format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(DEV) ## write the pages and lists that are made from the code
	$(BIN)/python tools/generate.py

clean: ## remove the environment, runs and builds
	rm -rf $(VENV) runs build dist site
