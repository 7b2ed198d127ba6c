# `make` lists the targets. Everything runs in .venv, which is set up on first use and again when pyproject.toml changes.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python …` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
# Overrides for `make quickstart`, e.g. ARGS="seed=1"; options for `make test`, e.g. ARGS="-k leases".
ARGS ?=
# Of `make test`: 2 runs whole flows beside the other tests; 0, one process.
TEST_WORKERS ?= 0
TESTS := -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: help quickstart test test-fast bench chaos lint format manifests rehearsal sbom clean distclean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

quickstart: $(READY)  ## the whole flow on a synthetic population: runs/quickstart/report.html
	$(BIN)/python -m jobs.pipeline configs/quickstart.yaml $(ARGS)

runs/quickstart/results.json: | $(READY)
	$(BIN)/python -m jobs.pipeline configs/quickstart.yaml

test: $(READY)  ## all tests
	$(BIN)/python $(TESTS) $(ARGS)

test-fast: $(READY)  ## all tests but the whole flows
	$(BIN)/python $(TESTS) -m "not slow" $(ARGS)

bench: $(READY) runs/quickstart/results.json  ## every bench; those that take --full are small without it
	@set -e; for bench in benchmarks/bench_*.py; do [ -e "$$bench" ] || continue; \
	  echo "== $$bench"; $(BIN)/python "$$bench" $(ARGS); done

chaos: $(READY)  ## kill workers, coordinator, nodes and drivers while 300 users train
	$(BIN)/python -m benchmarks.chaos $(ARGS)

lint: $(READY)  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

manifests: $(READY)  ## check the Kubernetes manifests (docs/cluster.md)
	$(BIN)/python -m k8s.check $(ARGS)

rehearsal: $(READY)  ## a Ray cluster on this machine, with failures (docs/cluster.md)
	$(BIN)/python -m k8s.rehearsal $(ARGS)

sbom: $(READY)  ## dist/sbom.json: what is in the image
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements k8s/image/constraints.txt --pyproject pyproject.toml --output-reproducible -o dist/sbom.json

format: $(READY)  ## put every file into ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and build outputs; experiments under runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv
	rm -rf .venv
