# demo, test, lint, bench: each sets up the virtual environment .venv first, once.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CORES ?= all
TESTS ?= tests
WORKERS ?= 2

.PHONY: help setup readers demo demo-micrographs evaluation test lint format weights weights-picker bench bench-peers bench-topaz bench-picking generate lock container

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv-%/.ready: tests/interop/%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-deps -r $<
	touch $@

readers: .venv-copick/.ready .venv-cryocat/.ready ## Make environments in which the tests read our files with copick and cryoCAT

setup: $(READY) ## Make .venv with everything pinned in requirements.lock
	@echo "Ready: $(BIN)/tomoline, $(BIN)/snakemake (source $(BIN)/activate)"

demo: $(READY) ## Run two shipped tomograms to STAR files and a report
	$(BIN)/snakemake --cores $(CORES) --config datasets='[demo]'
	$(BIN)/snakemake --config datasets='[demo]' --report results/demo/report.html
	@$(BIN)/tomoline status --dataset demo
	@$(BIN)/tomoline scores demo

demo-micrographs: $(READY) ## Pick particles in three shipped micrographs (after weights-picker)
	$(BIN)/snakemake --cores $(CORES) --config datasets='[demo_micrographs]'
	$(BIN)/snakemake --config datasets='[demo_micrographs]' \
	  --report results/demo_micrographs/report.html
	@$(BIN)/tomoline status --dataset demo_micrographs

SHARED ?= ../shared/data/tomograms
evaluation: $(READY) ## Run and score tomograms made by other people's programs (SHARED=folder)
	$(BIN)/tomoline onboard $(SHARED) --name evaluation --contrast dark
	$(BIN)/snakemake --cores $(CORES) --config datasets='[evaluation]'
	@$(BIN)/tomoline scores evaluation

test: $(READY) ## All tests (TESTS=tests/unit for a part, WORKERS=0 one after the other)
	$(BIN)/python -m pytest $(TESTS) --numprocesses $(WORKERS) --dist loadscope \
	  --no-loadscope-reorder --durations 25

lint: $(READY) ## Style, types and the workflow's own linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

format: $(READY) ## Put code and rules in the house's style
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/rules

weights: $(READY) ## Train the shipped models again, step by step (hours; days without a GPU)
	for file in config/training/msdnet-*.yaml config/training/dsmnet.yaml; do \
	  $(BIN)/snakemake train --cores $(CORES) --configfile "$$file"; \
	done

weights-picker: $(READY) ## Train the picker of micrographs, and put it with the models
	$(BIN)/snakemake simulate_micrographs --cores $(CORES) \
	  --configfile config/simulate/micrographs.yaml
	$(BIN)/python benchmarks/micrograph_sources.py $(MICROGRAPHS) results/sources
	$(BIN)/snakemake train_picker --cores $(CORES) --configfile config/training/hydrapicker.yaml
	$(BIN)/tomoline model results/models/hydrapicker --output resources/models/hydrapicker \
	  --heads real-10146 real-10059 real-10947
	cp results/models/hydrapicker/curves.jsonl resources/models/hydrapicker

bench: $(READY) ## Speed and memory of networks and stages on this machine, into docs/speed.md (an hour)
	$(BIN)/python benchmarks/bench_msdnet.py --output benchmarks/results/msdnet_cpu.json
	$(BIN)/python benchmarks/bench_volume.py
	$(BIN)/python benchmarks/bench_stages.py
	$(BIN)/python benchmarks/bench_gpu.py || [ $$? -eq 2 ]  # 2: no GPU
	$(BIN)/python benchmarks/speed_page.py

PEERS := .venv-peers
bench-peers: $(PEERS)/.ready ## Make .venv-peers: pytme (GPL), which the benchmarks run as a program
$(PEERS)/.ready: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -r $<
	touch $@

TOPAZ := .venv-topaz
bench-topaz: $(TOPAZ)/.ready ## Make .venv-topaz: Topaz (GPL, with a torch of its own), run as a program
$(TOPAZ)/.ready: benchmarks/requirements-topaz.txt
	$(PYTHON) -m venv $(TOPAZ)
	$(TOPAZ)/bin/python -m pip install --quiet -r $<
	touch $@

TABLE ?= specialised zero-shot few-shot single-head
MICROGRAPHS ?= ../shared/data/micrographs
bench-picking: $(READY) $(TOPAZ)/.ready ## Tables of pickers on micrographs (TABLE=zero-shot for one)
	$(BIN)/snakemake simulate_micrographs --cores $(CORES) \
	  --configfile config/simulate/micrographs.yaml
	$(BIN)/python benchmarks/micrograph_sources.py $(MICROGRAPHS) results/sources
	$(BIN)/python benchmarks/picking.py $(TABLE)

generate: $(READY) ## Write config.yaml, its schema and config/README.md from settings.py
	$(BIN)/python -m tomoline.settings

lock: ## Renew requirements.lock from pyproject.toml
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --upgrade setuptools '.[dev]'
	{ head -n 1 requirements.lock; .lock/bin/python -m pip freeze --all --exclude tomoline \
	  --exclude pip | sed -e 's/+cpu$$//' \
	  -e 's/^triton==.*/& ; sys_platform in "linux"/'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	.lock/bin/python envs/renew.py && rm -rf .lock

container: ## Build the Apptainer image envs/tomoline.sif (where apptainer and a registry are)
	apptainer build --fakeroot envs/tomoline.sif envs/tomoline.def
