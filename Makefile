# Each recipe is thin: uv sets up, the project's own command line does the work.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	2>/dev/null && { echo $$p; break; }; done)
UV_VERSION = 0.13.9
BIN = .venv/bin
ARGS ?=

.PHONY: setup demo test chaos fuzz bench lint lock clean

setup: .venv/stamp

.venv/stamp: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "driftloop needs Python 3.11, 3.12 or 3.13 on the PATH"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv -r requirements.lock
	$(BIN)/uv pip install --quiet --python .venv --no-deps -e .
	touch $@

demo: setup
	$(BIN)/driftloop demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
		--cov --cov-report=term:skip-covered --durations=20 $(ARGS)

chaos: setup
	$(BIN)/python -m tests.chaos $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.chaos.fuzz)
	$(if $(ARGS),,$(BIN)/python -m tests.chaos.disk)

fuzz: setup
	$(BIN)/python -m tests.chaos.fuzz $(ARGS)

bench: setup
	$(BIN)/python -m benchmarks $(ARGS)

lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy monitors streamer benchmarks
	$(BIN)/lint-imports

lock: setup
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
		--all-extras pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .driftloop
