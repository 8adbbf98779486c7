# PYTHON chooses the interpreter at the time .venv is made; `make clean` before changing it.
PYTHON ?= python3
BIN := .venv/bin
USABLE := 'import sys, pip; sys.exit(sys.version_info < (3, 11))'

.NOTPARALLEL:
.PHONY: help venv demo demo-swamp smoke test test-all faults bench conv-lowerings onednn tpu-compiler docs clean

help:  ## List the targets (also: make)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

venv: .venv/base.stamp  ## Install hwa_jax and its pinned requirements into .venv

demo: .venv/base.stamp  ## Compare HWA with its parts on digits; results in runs/demo
	@$(BIN)/python experiments/compare_hwa.py --config=configs/compare_hwa_digits.py --workdir=runs/demo

demo-swamp: .venv/base.stamp  ## Prune a network by SWAMP on digits; results in runs/demo-swamp
	@$(BIN)/python experiments/train_swamp.py --config=configs/swamp_digits.py --workdir=runs/demo-swamp

smoke: .venv/base.stamp  ## Check devices, averages, window, masks and resume on this machine's accelerator
	@$(BIN)/python experiments/smoke.py

test: .venv/dev.stamp  ## Run the fast tests
	@$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/dev.stamp  ## Run the fast and the slow tests
	@$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder -m ""

faults: .venv/dev.stamp  ## Kill, stop, damage, fill the disk: all tests of faults, short and long ones
	@$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder -m "" tests/faults tests/test_lost_replicas.py tests/test_processes.py tests/test_streamed_training.py tests/test_swamp_processes.py tests/test_swamp_resume.py

bench: .venv/bench.stamp  ## Measure speed and memory, goes on where it stopped; BENCH="--rows=particles --models=cnn_s" for a part
	@$(BIN)/python benchmarks/run.py $(BENCH)

conv-lowerings: .venv/base.stamp  ## Measure the table of convolution lowerings anew for this platform
	@$(BIN)/python benchmarks/conv_lowerings.py

onednn: .venv/onednn.stamp  ## Build oneDNN's convolutions for CPUs; HWA_JAX_CONV=onednn switches them on
	@$(BIN)/python -c "from hwa_jax import onednn; onednn.main()"

tpu-compiler: build/tpu.stamp  ## Install the compiler for TPUs into build/tpu, for experiments/compile_ahead.py

docs: .venv/docs.stamp  ## Build the documentation site; build/docs/index.html
	@$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

clean:  ## Remove .venv, the demos' results and what builds and tests leave behind
	@rm -rf .venv runs/demo runs/demo.compiled runs/demo-swamp runs/demo-swamp.compiled build docs/results dist *.egg-info .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/dev.stamp: EXTRAS := [dev]
.venv/bench.stamp: EXTRAS := [bench]
.venv/docs.stamp: EXTRAS := [docs]
.venv/onednn.stamp: EXTRAS := [onednn]
.venv/base.stamp .venv/dev.stamp .venv/bench.stamp .venv/docs.stamp .venv/onednn.stamp: setup.py constraints.txt
	@$(BIN)/python -c $(USABLE) 2>/dev/null || { \
	  $(PYTHON) -c $(USABLE) 2>/dev/null || \
	  { echo "error: PYTHON=$(PYTHON) is not Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -m venv --clear .venv; }
	@echo "installing hwa_jax$(EXTRAS) into .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".$(EXTRAS)"
	@touch $@

build/tpu.stamp: .venv/base.stamp
	@mkdir -p build
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target build/tpu libtpu
	@touch $@
