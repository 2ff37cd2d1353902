# The two commands of the README are `make demo` and `make test`; both make their own .venv. demo
# installs what a lab needs (requirements-lab.txt), the developers' targets add theirs to the same one.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
JOBS ?= 2
# A file's tests stay on one worker: what its fixtures made and compiled is made once.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help check demo demo-quick install test test-slow test-without-warp lint format bench bench-render gpu-aot clean

help:  ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

$(STAMP): requirements-lab.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements-lab.txt
	touch $(STAMP)

$(DEV_STAMP): $(STAMP) requirements.txt requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $(DEV_STAMP)

install: $(STAMP)  ## .venv with what a lab needs, and nothing else

demo: $(STAMP)  ## the whole pipeline at toy size on data it makes itself -> runs/demo/report.html
	$(BIN)/python launch.py --config=configs/demo.py --workdir=runs/demo

demo-quick: $(STAMP)  ## the same with a few steps of everything: does it run? figures mean nothing
	$(BIN)/python launch.py --config=configs/demo.py:quick --workdir=runs/demo_quick

test: $(DEV_STAMP)  ## the tests (minutes, 2 cores)
	$(PYTEST)

test-slow: $(DEV_STAMP)  ## the tests marked slow
	$(PYTEST) -m slow

test-without-warp: $(DEV_STAMP)  ## what draws with the best rasterizer, as where warp-lang is absent
	MOUSELIFT_TEST_WITHOUT_WARP=1 $(PYTEST) -m 'any_rasterizer and not slow' tests/render tests/pipelines

lint: $(DEV_STAMP)  ## style, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

check: lint  ## what CI refuses first, in seconds: style, layers, the house's rules
	$(BIN)/python -m pytest -n 0 tests/test_repo_rules.py

format: $(DEV_STAMP)  ## fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)  ## all benchmarks -> docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.run_all

bench-render: $(DEV_STAMP)  ## the rasterizers only
	$(BIN)/python -m tests.benchmarks.bench_render

gpu-aot:  ## training steps compiled for NVIDIA GPUs that are not here -> gpu_aot.jsonl
	$(PYTHON) -m venv .venv-gpu-aot
	.venv-gpu-aot/bin/pip install --quiet -r requirements.txt -e '.[warp]'
	.venv-gpu-aot/bin/pip install --quiet --no-deps $$(.venv-gpu-aot/bin/python -c "import jax; v = jax.__version__; print(f'jax-cuda12-plugin=={v} jax-cuda12-pjrt=={v}')") nvidia-cuda-nvcc-cu12
	JAX_PLATFORMS=cpu .venv-gpu-aot/bin/python -m tests.benchmarks.gpu_aot_train --out gpu_aot.jsonl

clean:  ## remove caches; keep .venv and runs/, which is yours
	rm -rf .cache .pytest_cache .ruff_cache
