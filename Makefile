# Two commands matter: `make demo` and `make test`. The rest is for people who change the code.
PYTHON ?= python3
VENV   ?= .venv
.DEFAULT_GOAL := help

# ---- development in place: the extension is built into backend/lowbit, no install ----
DEV_PYTHON ?= $(VENV)/bin/python
.PHONY: native check
native:  ## build the extension in place (incremental)
	@$(DEV_PYTHON) -c "import nanobind" 2>/dev/null || { echo "run 'make venv' first"; exit 1; }
	@cmake -S native -B build/dev -G Ninja -DPython_EXECUTABLE=$$($(DEV_PYTHON) -c 'import sys; print(sys.executable)') > build-dev.log 2>&1 || { cat build-dev.log; exit 1; }
	@cmake --build build/dev -j 2
	@cp build/dev/_native*.so backend/lowbit/

check: native  ## run some tests in place: make check T=tests/native
	PYTHONPATH=backend:integrations $(DEV_PYTHON) -m pytest -q $(or $(T),tests)
