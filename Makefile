# make demo: the whole road on generated images.   make test: the tests.   Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo_output
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint clean
.DEFAULT_GOAL := demo

# The C sources too: a changed one is built again before it is tested.
$(STAMP): setup.py constraints.txt $(wildcard moco_transfer/data/views/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "moco-transfer needs Python 3.10 or newer, this is " + sys.version.split()[0] + ". Run: make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV) (once; PyTorch is a large download) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/moco-transfer demo --output $(DEMO)

test: $(STAMP)
	@$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	@$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info
