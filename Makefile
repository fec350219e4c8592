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

# Tests run in so many processes with one thread each, a file in one of them.  ARGS="-n 0" runs them in one.
WORKERS ?= 2
QUICK   := -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

.PHONY: help demo test test-slow test-cpus lint clean
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
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) $(QUICK) $(ARGS)

# pytest ends with 5 where no test is marked slow.
test-slow: $(READY)
	@$(RUN) -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]

# PyTorch's own kernels, oneDNN's, MKL's and ours are held to those of older CPUs; this machine must know the newest of them.
#   make test-cpus CPUS=avx2       one of them
CPUS ?= sse avx2 avx512
as_sse    := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41       MKL_ENABLE_INSTRUCTIONS=SSE4_2 RAYCOND_OPS_MARCH=x86-64-v2 OMP_NUM_THREADS=1
as_avx2   := ATEN_CPU_CAPABILITY=avx2    ONEDNN_MAX_CPU_ISA=AVX2        MKL_ENABLE_INSTRUCTIONS=AVX2   RAYCOND_OPS_MARCH=x86-64-v3 OMP_NUM_THREADS=2
as_avx512 := ATEN_CPU_CAPABILITY=avx512  ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512 RAYCOND_OPS_MARCH=x86-64-v4 OMP_NUM_THREADS=4

test-cpus: $(READY)
	@failed=; $(foreach cpu,$(CPUS),echo "$(cpu): $(as_$(cpu))"; env $(as_$(cpu)) $(RUN) $(QUICK) $(ARGS) || failed="$$failed $(cpu)";) \
	[ -z "$$failed" ] || { echo "failed as:$$failed"; exit 1; }

lint: $(READY)
	@$(RUN) -m ruff check .

clean:
	rm -rf demo-out out build .pytest_cache .ruff_cache .hypothesis raycond.egg-info
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
