# make demo: from nothing to a trained net and its 10-clip score.   make test: the tests.   Others: make help
.PHONY: help demo test test-slow lint docs format clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a test process: two processes run on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

help:
	@echo 'make demo       install, render the embedded data set, train, test, draw (12 minutes on 2 cores)'
	@echo 'make test       install what the tests need and run them (8 minutes on 2 cores)'
	@echo 'make test-slow  the tests that take minutes each'
	@echo 'make lint       ruff and mypy'
	@echo 'make docs       the pages of docs/ as a site, with every config key and tool, in site/'
	@echo 'make format     let ruff format and fix'
	@echo 'make clean      remove the virtual environment and caches; runs/ and data/ stay'

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

test: $(VENV)/installed-dev
	$(PYTEST) -m 'not slow'

test-slow: $(VENV)/installed-dev
	$(PYTEST) -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/installed-dev: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
