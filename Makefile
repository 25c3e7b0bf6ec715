# One entry for everything. `make demo` and `make test` set up all they need.
PY := .venv/bin/python
STAMP := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench lock sim clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml requirements.lock tools/setup.sh
	sh tools/setup.sh
	@touch $(STAMP)

setup: $(STAMP) ## Make .venv with the locked versions of everything

demo: $(STAMP) ## Run the main job on this machine: a million records, a worker killed half-way
	$(PY) -m officegrid demo

test: $(STAMP) ## All tests
	sh tools/test.sh

lint: $(STAMP) ## Style, types, layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

format: $(STAMP) ## Rewrite the code in the house style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: $(STAMP) ## Speed, as ratios against a baseline measured in the same run
	$(PY) -m bench

sim: $(STAMP) ## Long simulation: make sim SECONDS=600
	$(PY) -m officegrid.testing.simulator --seconds $(or $(SECONDS),60)

lock: ## Resolve the newest versions into requirements.lock (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes \
	    --no-annotate --no-header --quiet -o requirements.lock
	$(PY) tools/worker_lock.py

clean: ## Remove everything that was built
	rm -rf .venv demo-output bench-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
