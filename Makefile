# Two commands on a fresh machine: `make demo` and `make test`. Each sets itself up in .venv.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: demo test test-all parity lint types clean
.DEFAULT_GOAL := demo

demo: $(READY)
	$(PY) -m jaxedit.demo

test: $(READY)
	$(PY) -m pytest -n 2

test-all: $(READY)
	$(PY) -m pytest -n 2 -m "not gpu and not tpu and not parity"

# PyTorch side by side. The CPU build is enough: elsewhere than here, set TORCH to the build you want.
TORCH ?= torch==2.13.0
parity: $(READY)
	$(PY) -m pip install -q $(TORCH)
	$(PY) -m pip install -q -e ".[parity]"
	$(PY) -m pytest -n 2 -m parity

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(READY)
	.venv/bin/mypy

$(READY): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  f'jaxedit needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; try make PYTHON=python3.12')"
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -e ".[dev]"
	@touch $(READY)

clean:
	rm -rf .venv ~/.cache/jaxedit/tests
