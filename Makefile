# Every target sets up .venv first. PYTHON=/path/to/python3.12 chooses the interpreter.
SHELL := bash
BIN := .venv/bin
READY := .venv/.ready
DEFAULT_CHECKPOINT := var/checkpoint
CHECKPOINT := $(DEFAULT_CHECKPOINT)
REPOSITORY := var/repository
INDEX := var/index
HTTP := 8080

# Images of containers often forbid Python to keep what it compiled. Here hundreds of processes import the same packages,
# which an installer leaves as source: torch alone would be compiled for two seconds in each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full unit integration e2e acceptance docs lint serve bench sbom clean

help:  ## Say what there is to make
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 23

setup: $(READY)  ## Make .venv with all dependencies

$(READY): pyproject.toml constraints.txt scripts/setup
	@scripts/setup
	@touch $@

demo: $(READY)  ## Everything once: checkpoint, export, Triton, index, search, measures
	@$(BIN)/resrank demo $(ARGS)

# A file in one process: what its tests share is made once. One process more than cores, up to 4: servers start, end and
# are waited for in two fifths of the time.
WORKERS := $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 4)))
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations=10

test: lint docs  ## All that has to pass
	$(PYTEST) $(ARGS)

test-full: lint docs  ## The same, and what takes long: every family, precision and generation of GPU
	$(PYTEST) --full $(ARGS)

unit integration e2e: $(READY)  ## Its part of the tests: without servers, against real ones, the README's commands
	$(PYTEST) tests/$@ $(ARGS)

# Each client has an environment of its own below var/acceptance. ARGS names some of tests/acceptance/clients.
acceptance: repository  ## A live stack called by clients that others wrote
	@$(BIN)/python tests/acceptance/run.py $(REPOSITORY) $(ARGS)

docs: $(READY)  ## The documentation as a site in var/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(READY)  ## ruff, mypy and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# Never of another CHECKPOINT: what the default replaces is only ever an older default.
$(DEFAULT_CHECKPOINT)/resrank.json: checkpoints/default/resrank.json checkpoints/default/calibration.json | $(READY)
	rm -rf $(DEFAULT_CHECKPOINT)
	$(BIN)/resrank checkpoint merge --default --out $(DEFAULT_CHECKPOINT)

$(REPOSITORY)/manifest.json: $(CHECKPOINT)/resrank.json
	$(BIN)/resrank export $(CHECKPOINT) --out $(REPOSITORY) --force

# A repository of another checkpoint can be the newer one: it is refused, since it may be one that was exported by hand.
.PHONY: repository
repository: $(READY) $(REPOSITORY)/manifest.json
	@$(BIN)/python scripts/require_exported_from.py $(REPOSITORY) $(CHECKPOINT)

serve: repository  ## Triton, the retrieval sidecar and the HTTP gateway until Ctrl-C
	@exec $(BIN)/resrank serve $(REPOSITORY) --index $(INDEX) --http $(HTTP) $(ARGS)

var/infinity/.ready: benchmarks/infinity-requirements.txt | $(READY)
	@scripts/setup-infinity
	@touch $@

bench: repository var/infinity/.ready  ## Speed against the same work done otherwise
	@$(BIN)/resrank bench --repository $(REPOSITORY) --checkpoint $(CHECKPOINT) $(ARGS)

sbom: $(READY)  ## What the environment is made of, as CycloneDX JSON in var/sbom.json
	@mkdir -p var
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o var/sbom.json $(BIN)/python

clean:  ## Remove .venv, what was made under var, and caches
	rm -rf .venv var .pytest_cache .mypy_cache .ruff_cache .hypothesis
