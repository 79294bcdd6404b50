# Two commands: `make demo` and `make test` (`make quick`: the fast tests alone). Everything goes into
# .venv; nothing else is touched.
# TORCH chooses another build, e.g. TORCH="torch==2.13.0 --index-url ..." for CUDA.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH ?= torch==2.13.0
OUT ?= demo
BIN := .venv/bin
# A file's tests share their fixtures, so one process runs them all.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test quick setup lint examples clean

setup: .venv/.done

.venv/.done: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: pass PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq $(TORCH)
	$(BIN)/pip install -qq -r requirements.lock
	$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/depure demo --out $(OUT)

test: setup
	$(PYTEST)

quick: setup
	$(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/mypy

examples: setup
	@for f in examples/quick_*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

clean:
	rm -rf .venv build dist src/*.egg-info
