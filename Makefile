# Every target sets up .venv on a fresh machine; `make PYTHON=python3.12 test` chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test check bench soak campaigns test-all

demo: $(STAMP)  ## answers from the model that ships with Penstock, cut into two stages
	@$(BIN)/penstock generate demo --pipeline-parallel-size 2

test: check  ## what CI runs: lint, types, tests
	$(PYTEST) -m "not slow and not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .types && ln -sfn .. .types/penstock
	MYPYPATH=.types $(BIN)/mypy --strict -p penstock --exclude '(^|/)build/'

bench: $(STAMP)  ## exact figures of the budgets; the machine should do nothing else
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

soak: $(STAMP)  ## half an hour of mixed load over HTTP: memory stays, nothing is lost, counters add up
	$(BIN)/python tests/benchmarks/soak.py --minutes 30

campaigns: $(STAMP)
	$(PYTEST) -m "slow and not gpu"

test-all: test campaigns  ## and the long campaigns

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, this is {sys.version}")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Penstock and what it needs into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
