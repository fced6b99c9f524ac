# The verbs of this repository; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
IMAGE ?= blip-python
BUILD ?= docker build
REPEATED = $(if $(filter off,$(CACHE)),--no-cache) $(foreach step,$(AGAIN),--again '$(step)')
SETTINGS = $(foreach setting,$(if $(PRESET),preset=$(PRESET)) $(if $(PLACEMENT),placement=$(PLACEMENT)) $(SET),--set '$(setting)')

export HF_HUB_OFFLINE ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export KFP_HOST

.DEFAULT_GOAL := help
.PHONY: help install run-pipeline schedule test test-all test-s3 test-cluster check check-k8s compile image mlflow clean

help: ## show the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make the environment in .venv from pyproject.toml and constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3"; exit 1; }
	@echo "installing into $(VENV), once: this takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run-pipeline: $(INSTALLED) ## run the bootstrap (PIPELINE=retrain: on new shards, blip2: BLIP-2, blip2_capfilt: BLIP-2 on texts of CapFilt, downstream: tasks) on this machine, or at KFP_HOST=... (DATA=path takes own data, PRESET=base, PLACEMENT=a100 and SET="name=value ..." set parameters, CACHE=off runs all steps, AGAIN="step ..." some of them, whatever was done)
	@$(BIN)/python -m pipelines $(if $(KFP_HOST),submit,run) $(PIPELINE) $(if $(DATA),--data '$(DATA)') $(SETTINGS) $(REPEATED)

schedule: $(INSTALLED) ## run it on new shards at KFP_HOST again and again: CRON="0 0 3 * * 0" is Sundays at 03:00
	@$(BIN)/python -m pipelines schedule '$(CRON)' $(PIPELINE) $(SETTINGS)

test: $(INSTALLED) ## pass the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow'

test-all: $(INSTALLED) ## pass all tests, also those that take minutes each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(INSTALLED) ## lint, format, types, floors between the packages, and what the pipelines compile to
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pipelines compile

check-k8s: $(INSTALLED) ## lint image and manifests, and hold these to the schemas of the oldest and the newest Kubernetes
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/yamllint --strict --config-file k8s/.yamllint k8s
	@$(BIN)/shellcheck tests/cluster/*.sh
	@$(BIN)/python -m pytest tests/k8s tests/launch/test_trainjob.py tests/launch/test_workers.py

test-s3: $(INSTALLED) ## pass the tests of stores and workers against the S3 server that AWS_ENDPOINT_URL names, with the keys of the environment
	@test -n "$$AWS_ENDPOINT_URL" || { echo "set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a server's"; exit 1; }
	@TEST_S3_SERVER=$$AWS_ENDPOINT_URL OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_storage.py tests/workers tests/capfilt

test-cluster: $(INSTALLED) ## try manifests, jobs and workers on the cluster of KUBECONFIG, which should be good for nothing else (tests/cluster)
	@BLIP_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster

compile: $(INSTALLED) ## write the YAMLs that Kubeflow Pipelines takes into build/
	@$(BIN)/python -m pipelines compile

image: $(INSTALLED) ## build the image that runs on a cluster, IMAGE=name tagged by the revision (BASE_IMAGE=..., BUILD="buildah bud")
	@revision=$$($(BIN)/python -c 'from components.revision import revision; print(revision())') && \
		$(BUILD) --build-arg REVISION=$$revision $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) -t $(IMAGE):$$revision . && \
		echo "$(IMAGE):$$revision"

mlflow: $(INSTALLED) ## show parameters, curves and models of all runs at http://127.0.0.1:5000, below "Model training"
	@echo 'http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning'
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
		--backend-store-uri sqlite:///runs/mlflow.db --default-artifact-root runs/mlartifacts

clean: ## delete runs with all they made, builds and caches; the environment stays
	rm -rf runs build .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
