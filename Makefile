# Two targets a newcomer needs; each works alone on a machine that has only Python and make.
#   make demo   set up, import the shipped perf recording, predict what per-VMA locks gain
#   make test   set up, run the tests on up to four CPUs; TESTS="tests/engine -x" runs these
# and for those who work on it: make lint (format, lint, types), make clean.

PYTHON ?= python3
VENV ?= .venv
TESTS ?= -n auto --maxprocesses 4 --dist loadgroup
BIN := $(VENV)/bin
TRACE := build/demo.mmt
RECORDING := datasets/traces/node-minify-workers/perf.data

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/run.done
	@mkdir -p build
	$(BIN)/mmreplay import $(RECORDING) -o $(TRACE) --force
	$(BIN)/mmreplay show $(TRACE)
	$(BIN)/mmreplay predict $(TRACE) --from linux-6.1 --to linux-6.18 --cores 1,2,4,8,16 \
	  --scale-group minify-worker --threads cores

test: $(VENV)/dev.done
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# dev.lock pins a superset of run.lock, to the same versions.
$(VENV)/%.done: requirements/%.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmreplay needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
