# `make demo` and `make test` are the two commands that matter; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test tools prometheus object-store venv cluster images lint unit api chart store engine elastic cluster-test test-chaos lock clean

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CLUSTER ?= embedded
export CLUSTER

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv ## the main job: a GRPO run with idle-GPU drafter training, beside a baseline without speculation
	@$(RUN) -m bench.demo

demo-down: ## removes what `make demo` started
	@$(PYTHON) -m bench.demo --down

test: ## everything: lint, unit, chart, store, API, engine, cluster and elastic tests, one summary
	@$(PYTHON) -m tests.run

tools: ## system packages and the embedded cluster's binaries
	@$(PYTHON) -m devcluster tools
	@$(PYTHON) -m devcluster build

venv: $(VENV)/.made ## the Python environment, from uv.lock

$(VENV)/.made: pyproject.toml uv.lock
	@command -v uv >/dev/null || $(PYTHON) -m pip install --quiet uv
	@uv sync --quiet --frozen --all-extras --all-groups
	@touch $@

cluster: tools ## starts the embedded cluster
	@$(PYTHON) -m devcluster up

images: tools ## builds the operator and workloads images
	@$(PYTHON) images/build.py

lint: venv ## ruff, mypy, import-linter
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && PYTHONPATH=operator:workloads $(VENV)/bin/lint-imports

unit: venv ## pure tests, seconds
	@$(RUN) -m pytest tests/unit

prometheus: tools ## Prometheus and promtool, which only tests need
	@$(PYTHON) -m devcluster build prometheus

object-store: tools ## an S3 server, which only tests need
	@$(PYTHON) -m devcluster build seaweedfs

chart: venv prometheus ## lint, render and schema of the chart; its alerts
	@$(RUN) -m pytest tests/chart

api: venv prometheus ## against a real kube-apiserver
	@$(RUN) -m pytest tests/api

store: venv object-store ## on real volumes and a real S3 server
	@$(RUN) -m pytest tests/store

engine: venv object-store ## against a real vLLM on the CPU
	@$(RUN) -m pytest tests/engine

elastic: venv ## trainers that train together, as real processes with a real lighthouse
	@$(RUN) -m pytest tests/elastic

cluster-test: venv images cluster ## on the real node, with real pods
	@$(RUN) -m pytest tests/cluster

test-chaos: venv images cluster ## faults of every kind on the real node, with what became of each; 20 minutes at most
	@$(PYTHON) -m tests.run chaos; status=$$?; grep -E -A60 '^(faults injected|[0-9]+ workers killed)' build/test/chaos.log; exit $$status

lock: ## refreshes uv.lock
	@uv lock

clean: ## removes what was built in this checkout
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
