# Every target makes .venv first, with what pyproject.toml asks for; nothing else needs to be installed by hand.
# PYTHON=python3.12 picks an interpreter, PYTEST_ARGS="-k framing -x" goes to pytest, WORKERS=0 runs tests one by one,
# BENCH_ARGS="--only http1" to the benchmark (BENCH_ARGS=--help lists what there is).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help venv demo test test-source test-compiled test-long bench lint docs compiled clean

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

TESTS = tools/run_tests.sh $(WORKERS) $(PYTEST_ARGS)
# The directories whose tests run again on the mypyc build.
COMPILED_TESTS = $(wildcard $(addprefix tests/,codec filters http integration istio matching net rbac route tls upstream))
# Without -P, or with the checkout before the build on the path, the tests would quietly run the source again.
ON_COMPILED = env PYTHONSAFEPATH=1 PYTHONPATH="$$compiled:$(CURDIR)" MESHPROXY_EXPECT_COMPILED=1

help:  ## say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "make %-14s %s\n", $$1, $$2 }'

venv:  ## create .venv with everything that the project needs
	@tools/bootstrap.sh "$(VENV)"

demo: venv  ## watch a canary release in a small mesh: a pilot, sidecars, real HTTP traffic
	@$(BIN)/python -m meshproxy demo $(DEMO_ARGS)

test: lint test-source test-compiled  ## the gate: lint, types, all tests on the source, the core's again compiled

test-source: venv
	@[ "$$(id -u)" -ne 0 ] || tools/system_packages.sh iptables ip curl h2load nghttpd etcd etcdctl openssl
	@$(TESTS) -m "not long" tests filters

test-compiled: venv
	@tools/system_packages.sh compiler
	compiled=$$($(BIN)/python tools/build_compiled.py)
	$(ON_COMPILED) $(TESTS) -m "not long" $(COMPILED_TESTS)

test-long: venv  ## soak, scale, long fuzzing and chaos
	@MESHPROXY_HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m long $(PYTEST_ARGS) tests

bench: venv  ## CPU, rate, latency and memory next to Envoy, nginx and HAProxy, recorded in bench/RESULTS.md
	@tools/system_packages.sh compiler nginx haproxy wrk h2load nghttpd nghttpx
	compiled=$$($(BIN)/python tools/build_compiled.py)
	$(ON_COMPILED) $(BIN)/python -m bench $(BENCH_ARGS)

lint: venv  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	$(BIN)/mypy --strict meshproxy tests tools bench filters

docs: venv  ## write docs/configuration.md and docs/rules.md anew
	@$(BIN)/python -m meshproxy.config.docs > docs/configuration.md
	$(BIN)/python -m meshproxy.pilot.documents.docs > docs/rules.md

compiled: venv  ## compile the hot modules outside the tree and print the directory
	@tools/system_packages.sh compiler
	$(BIN)/python tools/build_compiled.py

clean:  ## remove .venv and what tools left in the tree
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find meshproxy tests tools bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
