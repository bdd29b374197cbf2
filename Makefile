# Targets with a ## comment are what `make help` lists.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

VENV := .venv/bin
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' kproxy_ebpf/__init__.py)
IMAGE ?= kproxy-ebpf:$(VERSION)
# A world that fell over fails every test after it, slowly: ten failures tell enough.
PYTEST := $(VENV)/pytest --durations=3 --maxfail=10
# The tests of e2e wait more than they compute: so many processes share them, world by world.
E2E_WORKERS ?= 3
# `make test`, cheapest first: a slip shows in seconds. The steps of a stage run side by side.
TEST_STAGES := "lint type layers" "unit bpf" "e2e" "control-plane" "cluster differential"
TEST_STEPS := $(subst ",,$(TEST_STAGES))

.PHONY: help contract setup setup-dev setup-bench preflight demo test $(TEST_STEPS) control-plane bench bench-full bench-scale compiled image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing; leaves .venv/bin/kproxy-ebpf
	@hack/setup.sh

setup-dev: ## the same, with the tools of the tests
	@hack/setup.sh dev

setup-bench: ## the same, with what the bench measures with (nginx, ab, iperf3)
	@hack/setup.sh bench

preflight:
	@hack/preflight.sh

demo: preflight setup ## a small cluster on this machine: a pod reaches a Service (root)
	@$(VENV)/kproxy-ebpf demo

test: preflight setup-dev ## every check and test (root)
	@started=$$SECONDS; \
	for stage in $(TEST_STAGES); do \
		printf '\n== %s (%d s so far)\n' "$$stage" "$$((SECONDS - started))"; \
		[[ $$stage == *\ * ]] && output=target || output=none; \
		$(MAKE) --jobs --output-sync="$$output" $$stage || { echo "make test: $$stage failed" >&2; exit 1; }; \
	done; \
	printf '\nall of %s passed in %d s\n' "$(TEST_STEPS)" "$$((SECONDS - started))"

contract: setup-dev ## write the Python half of bpf_src/contract.h
	@$(VENV)/python hack/contract.py

lint: setup-dev ## style and formatting (ruff)
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .

type: setup-dev ## types (mypy, strict)
	@$(VENV)/mypy

layers: setup-dev ## import rules between the packages (import-linter)
	@$(VENV)/lint-imports

unit: setup-dev ## tests of the Python code, no root
	@$(PYTEST) tests/unit

bpf: preflight setup-dev ## golden packets through BPF_PROG_TEST_RUN (root)
	@$(PYTEST) tests/bpf

e2e: preflight setup-dev ## traffic between pods in network namespaces (root)
	@$(PYTEST) -v --numprocesses $(E2E_WORKERS) --dist loadscope --no-loadscope-reorder -m "not alone" tests/e2e
	@$(PYTEST) -v -m alone tests/e2e

cluster: preflight setup-dev control-plane ## a real API server feeds the daemon (root)
	@$(PYTEST) -v tests/cluster

differential: preflight setup-dev control-plane ## the same questions to us and to the real kube-proxy (root)
	@$(PYTEST) tests/differential

control-plane: setup-dev ## build etcd, kube-apiserver and so on once, into the user's cache
	@hack/control-plane.sh >/dev/null

bench: preflight setup-bench control-plane ## measure against kube-proxy, about 6 minutes; writes bench/REPORT.md (root)
	@$(VENV)/python -m bench

bench-full: preflight setup-bench control-plane ## all paths and 50,000 Services, at most about 45 minutes (root)
	@$(VENV)/python -m bench --full

bench-scale: preflight setup-dev control-plane ## the same for 10,000 Services of 20 endpoints; 15 minutes (root)
	@$(VENV)/python -m bench.scale

compiled: setup ## compile the programs for every kernel into compiled/, where a start from this folder finds them
	@$(VENV)/kproxy-ebpf compile --output compiled

image: ## build the container image (needs docker or a work-alike)
	docker build --build-arg VERSION=$(VERSION) --tag $(IMAGE) .

clean: ## remove what setup and the tests made in this folder; the user's cache stays
	rm -rf .venv build compiled cni/kproxy-ebpf-cni *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
