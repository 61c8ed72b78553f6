# Two commands set everything up: `make demo` and `make test`. Needs Python 3.11+, make and git.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test lint format benchmark clean

help:
	@echo "make demo       the whole of ODA on this machine, and every sat accounted for"
	@echo "make demo-down  stop what make demo left running"
	@echo "make test       lint, types, import rules and all tests"
	@echo "make benchmark  speed, as ratios against something run beside it"

demo: $(VENV)/.demo
	@$(BIN)/python -m regtest.demo

demo-down:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m regtest.demo --down; fi

test: lint
	$(BIN)/oda regtest provision
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.dev
	@for each in benchmarks/*.py; do \
	   echo "== $$each"; $(BIN)/python -m "benchmarks.$$(basename $$each .py)" || exit 1; \
	 done

# What pip would take for torch decides the size of the download: a CPU build where pip's
# configuration names an index or folder that has one, the CUDA build otherwise on Linux.
$(VENV)/.demo: pyproject.toml | $(VENV)/.base
	@$(BIN)/pip install --quiet --dry-run --no-deps --report $(VENV)/torch.json "$(TORCH)" 2>/dev/null || true
	@if grep -q '+cpu' $(VENV)/torch.json 2>/dev/null || [ "$$(uname)" = Darwin ]; then \
	   echo "First set-up: downloads about 375 MB (torch for CPU is 200 MB of it; bitcoind 50 MB, scikit-learn 45 MB)."; \
	 else \
	   echo "First set-up: downloads about 2.9 GB (torch with CUDA is 2.7 GB of it; bitcoind 50 MB, scikit-learn 45 MB)."; \
	 fi
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ODA needs Python 3.11 or newer: name one with PYTHON=python3.12 make ..."; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	 else $(PYTHON) regtest/bootstrap.py $(VENV); fi
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
