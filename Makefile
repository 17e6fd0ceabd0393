# make demo: the whole pipeline on real images, on a CPU.
# make test, make lint, make docs: the checks of CI. Each target sets up .venv first, once; with
# LOCKED=1 from requirements.lock, whose SHA-256 every package must have (Python 3.11 and newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO ?= demo_output
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-gpu lint docs docs-serve dist clean
.DEFAULT_GOAL := demo

# The C source too: when it changes, it is built again before it is tested.
$(STAMP): setup.py constraints.txt requirements.lock $(wildcard moco_transfer/data/views/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "moco-transfer needs Python 3.10 or newer, this is " + sys.version.split()[0] + ". Run: make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV) (once; PyTorch is a large download) ..."
	@$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	@grep '^setuptools==' requirements.lock >$(VENV)/setuptools.lock
	@$(PIP) --require-hashes -r $(VENV)/setuptools.lock
	@$(PIP) --require-hashes --no-build-isolation -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
else
	@$(PIP) -c constraints.txt -e '.[test,lint,docs]'
endif
	@touch $@

demo: $(STAMP)
	@$(BIN)/moco-transfer demo --output $(DEMO)

# Two processes, one thread each: a test that starts processes of its own then disturbs no other.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow

test-gpu: $(STAMP)
	@$(BIN)/python -m pytest -q -m gpu

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/codespell

# Strict: a broken link or an undocumented reference is an error. Needs no network.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-serve: $(STAMP)
	@$(BIN)/mkdocs serve

dist: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	@$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info
