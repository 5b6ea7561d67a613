# Every target sets up .venv first. PYTHON=/path/to/python3.12 chooses the interpreter.
SHELL := bash
BIN := .venv/bin
READY := .venv/.ready
DEFAULT_CHECKPOINT := var/checkpoint
CHECKPOINT := $(DEFAULT_CHECKPOINT)
REPOSITORY := var/repository
INDEX := var/index

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full unit integration e2e docs lint serve bench clean

help:  ## Say what there is to make
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(READY)  ## Make .venv with all dependencies

$(READY): pyproject.toml constraints.txt scripts/setup
	@scripts/setup
	@touch $@

demo: $(READY)  ## Everything once: checkpoint, export, Triton, index, search, measures
	@$(BIN)/resrank demo $(ARGS)

test: lint docs unit integration e2e  ## All that has to pass

test-full: FULL := --full
test-full: test  ## The same, and what takes long: every family, precision and generation of GPU

# Tests of one file share what is made once a file, so a file goes to one process.
unit: $(READY)  ## Tests without a server, on all cores
	$(BIN)/pytest tests/unit -n auto --dist loadfile --durations=10 $(FULL) $(ARGS)

integration: $(READY)  ## Tests against a real Triton and a real sidecar
	$(BIN)/pytest tests/integration --durations=10 $(FULL) $(ARGS)

e2e: $(READY)  ## The README's commands
	$(BIN)/pytest tests/e2e --durations=10 $(FULL) $(ARGS)

docs: $(READY)  ## The documentation as a site in var/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY)  ## ruff, mypy and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# Never of another CHECKPOINT: what the default replaces is only ever an older default.
$(DEFAULT_CHECKPOINT)/resrank.json: checkpoints/default/resrank.json | $(READY)
	rm -rf $(DEFAULT_CHECKPOINT)
	$(BIN)/resrank checkpoint merge --default --out $(DEFAULT_CHECKPOINT)

$(REPOSITORY)/manifest.json: $(CHECKPOINT)/resrank.json
	$(BIN)/resrank export $(CHECKPOINT) --out $(REPOSITORY) --force

serve: $(READY) $(REPOSITORY)/manifest.json  ## Triton and the retrieval sidecar until Ctrl-C
	@exec $(BIN)/resrank serve $(REPOSITORY) --index $(INDEX) $(ARGS)

var/infinity/.ready: benchmarks/infinity-requirements.txt | $(READY)
	@scripts/setup-infinity
	@touch $@

bench: $(READY) $(REPOSITORY)/manifest.json var/infinity/.ready  ## Speed against the same work done otherwise
	@$(BIN)/resrank bench $(ARGS)

clean:  ## Remove .venv, what was made under var, and caches
	rm -rf .venv var .pytest_cache .mypy_cache .ruff_cache .hypothesis
