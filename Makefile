# each target makes its own virtual environment, so `make test` works in a fresh clone.
# TORCH is what to install first. On Linux the plain wheel brings the CUDA libraries; for the CPU build give pip the
# index that pytorch.org names: make test TORCH="torch --index-url INDEX"
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
OUT ?= softext-demo
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-quick test peft-acceptance check format clean

demo: $(INSTALLED)
	$(VENV)/bin/softext demo --out $(OUT)

demo-quick: $(INSTALLED)
	$(VENV)/bin/softext demo --quick --out $(OUT)-quick

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto

# tests that PEFT's developers wrote for its own methods, on ours: fetches PEFT's source distributions into build/
peft-acceptance: $(INSTALLED)
	$(VENV)/bin/python tests/peft_acceptance/run.py

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(TORCH)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
