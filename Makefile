# Targets create the environment they need: all it takes is Python 3.11 to 3.13, and for the local
# broker Java 17 and Maven (or Docker, or a broker that already runs).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Tests start hundreds of processes: each would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that will do; `make PYTHON=...` names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14))' \
		2> /dev/null && $$python -c 'import sys; print(sys.executable)' && break; done)

# uv as found, or else installed into .tools: nothing is installed anywhere else.
UV := $(or $(shell uv --version 2> /dev/null \
	| awk '{ split($$2, v, "."); exit !(v[1] > 0 || v[2] >= 9) }' && command -v uv),.tools/bin/uv)

.PHONY: help setup demo test faults soak bench switches benchmark-model lint types audit-dependencies format lock clean python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: python $(UV) ## Create or update the environment in .venv, as locked
	$(UV) sync --locked --extra training --python "$(PYTHON)"

demo: setup ## Train and replay live clicks on a local broker; options: make demo ARGS='--once --json'
	@.venv/bin/mindstream demo $(ARGS)

# Tests wait much, for brokers and for each other's processes: two at a time fill two cores. A file
# stays together, with what its tests share, and the files of long tests come first.
AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder

test: setup ## Check everything; options for pytest: make test ARGS='-k window'
	@$(MAKE) -j3 lint types audit-dependencies
	.venv/bin/pytest $(or $(ARGS),$(AT_ONCE))

faults: setup ## Inject every fault and compare with a plain fold; options: make faults ARGS='--quick --seed 1'
	@.venv/bin/python -m tests.faults $(ARGS)

soak: setup ## Half an hour of faults near the sustainable rate; options: make soak ARGS='--minutes 5'
	@.venv/bin/python -m tests.faults.soak $(ARGS)

bench: setup ## Measure, each figure beside its floor; options: make bench ARGS='--only throughput-lite --scale 0.1'
	@.venv/bin/python -m benchmarks $(ARGS)

switches: setup ## Switches of release under look-ups and clicks; options: make switches ARGS='--switches 3'
	@.venv/bin/python -m benchmarks.switches $(ARGS)

benchmark-model: setup ## Recommendation quality; options: make benchmark-model ARGS='--data FOLDER --presets default --seeds 1'
	@.venv/bin/python -m training.benchmark $(ARGS)

lint: setup ## Check style and formatting
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: setup ## Check types, strictly
	.venv/bin/mypy

audit-dependencies: setup ## Fail if a locked dependency has a known vulnerability
	@.venv/bin/python -m deploy.audit_dependencies --uv $(UV)

format: setup ## Format the code and mend what can be mended
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

lock: python $(UV) ## Bring uv.lock up to date with pyproject.toml
	$(UV) lock --python "$(PYTHON)"

clean: ## Delete the environment and all caches made here; the demo's data stays
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "mindstream needs Python 3.11, 3.12 or 3.13, and found none of them" \
			"($$(python3 --version 2>&1 || true)). Name one: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi

.tools/bin/uv: | python
	"$(PYTHON)" -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
