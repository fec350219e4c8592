# Every target sets up .venv if it is missing or older than the list of packages.
#   make PYTHON=/path/to/python ...     chooses the interpreter
#   make test ARGS="-k cameras -x"      passes arguments on, also to `demo`

VENV   ?= .venv
PYTHON ?=
ARGS   ?=
READY  := $(VENV)/.ready
RUN    := $(VENV)/bin/python

# Threads that spin while they wait make everything ten times slower as soon as another process wants a core.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY

.PHONY: help demo test test-slow lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       render heads, train on them for two minutes, look at them from the left to the right"
	@echo "make test       all quick tests"
	@echo "make test-slow  the others"
	@echo "make lint       ruff"
	@echo "make clean      remove caches and the output of the demo; .venv and training-runs stay"

$(READY): pyproject.toml constraints.txt .ci/setup-venv
	@PYTHON="$(PYTHON)" .ci/setup-venv "$(VENV)"
	@touch $@

demo: $(READY)
	@$(RUN) demo/run.py $(ARGS)

test: $(READY)
	@$(RUN) -m pytest -m "not slow" $(ARGS)

# pytest ends with 5 where no test is marked slow.
test-slow: $(READY)
	@$(RUN) -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]

lint: $(READY)
	@$(RUN) -m ruff check .

clean:
	rm -rf demo-out out build .pytest_cache .ruff_cache .hypothesis raycond.egg-info
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
