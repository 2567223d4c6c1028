# Everything from a bare checkout: Python 3.10 or newer, pip and venv are all that is needed.
#   make train PYTHON=python3.12      another interpreter
#   make test VENV=/path/to/env       an existing environment, used as it is
#   make fuzz MINUTES=30              made-up inputs for half an hour
#   make train TORCH_INDEX=URL        another index for torch and torchvision
# A target installs what it needs and no more: `make train` leaves out the tools of the tests.

PYTHON ?= python3
VENV ?= .venv
VENV_ONEDL ?= .venv-onedl
VENV_OLDEST ?= .venv-oldest
TORCH_INDEX ?=
OLDEST_TORCH := 'torch==2.6.*' 'torchvision==0.21.*'

# A worker per core; a file stays on one worker, which keeps what its tests share.
PARALLEL := -n auto --dist loadfile

# OpenMP's threads wait asleep: on a busy machine, waiting threads that spin cost more than the work.
export OMP_WAIT_POLICY ?= passive

DATA := data/quickstart
DETECTOR := mask-rcnn_convnext-atto_fpn_quickstart
SEGMENTOR := upernet_convnext-atto_quickstart

BIN = $(VENV)/bin
TRAIN = $(VENV)/.convnext_backbone-train
TEST = $(VENV)/.convnext_backbone-test
DOCS = $(VENV)/.convnext_backbone-docs
TEST_ONEDL = $(VENV_ONEDL)/.convnext_backbone-test
TEST_OLDEST = $(VENV_OLDEST)/.convnext_backbone-test

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train train-segmentation test test-onedl test-oldest coverage lint docs docs-run \
    release fuzz format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment that the caller names is the caller's: this checkout is put before whatever is
# installed there, and nothing is installed.
ifeq ($(origin VENV),file)
$(TRAIN): setup.cfg pyproject.toml
	$(call install,$(VENV),openmmlab$(,)quickstart)
$(TEST): $(TRAIN)
	$(call install,$(VENV),openmmlab$(,)quickstart$(,)test)
$(DOCS): setup.cfg pyproject.toml
	$(call install,$(VENV),docs)
else
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
.PHONY: $(TRAIN) $(TEST) $(DOCS)
$(TRAIN) $(TEST) $(DOCS):
	@test -x $(BIN)/python || { echo "VENV=$(VENV) holds no bin/python" >&2; exit 2; }
endif

$(TEST_ONEDL): setup.cfg pyproject.toml
	$(call install,$(VENV_ONEDL),onedl$(,)quickstart$(,)test)

$(TEST_OLDEST): setup.cfg pyproject.toml
	$(call install,$(VENV_OLDEST),openmmlab$(,)quickstart$(,)test,$(OLDEST_TORCH))

, := ,
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "$(PYTHON) is older than Python 3.10; set PYTHON=" >&2; exit 2; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@sh tools/install_torch.sh $(1)/bin/python '$(TORCH_INDEX)' $(3)
	@echo "Installing $(2) into $(1)"
	@$(1)/bin/python -m pip install --disable-pip-version-check -e '.[$(2)]'
	@touch $@
endef

train: $(TRAIN) ## Build the data, train the detector, validate it and draw what it predicts
	$(BIN)/python tools/make_quickstart_data.py --out $(DATA)
	$(BIN)/python tools/train.py configs/quickstart/$(DETECTOR).py
	$(BIN)/python tools/draw_quickstart.py configs/quickstart/$(DETECTOR).py \
	    "$$(cat work_dirs/$(DETECTOR)/last_checkpoint)" --out work_dirs/$(DETECTOR)/predictions.png

train-segmentation: $(TRAIN) ## The same for the segmentor
	$(BIN)/python tools/make_quickstart_data.py --out $(DATA)
	$(BIN)/python tools/train.py configs/quickstart/$(SEGMENTOR).py
	$(BIN)/python tools/draw_quickstart.py configs/quickstart/$(SEGMENTOR).py \
	    "$$(cat work_dirs/$(SEGMENTOR)/last_checkpoint)" --out work_dirs/$(SEGMENTOR)/predictions.png

lint: $(TEST) ## Style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

test: lint ## Style, types and the whole suite
	$(BIN)/python -m pytest $(PARALLEL)

test-onedl: $(TEST_ONEDL) ## The OpenMMLab part of the suite on the onedl packages
	$(VENV_ONEDL)/bin/python -m pytest $(PARALLEL) tests/openmmlab tests/configs tests/tools

# torch.compile(fullgraph=True) needs torch 2.8, and torch.export of the models 2.9. The symbolic
# tracing of torch 2.6 cannot write annotations such as `bool | None`, nor can it shard on the CPU.
test-oldest: $(TEST_OLDEST) ## Models, weights and features on the oldest torch that is supported
	$(VENV_OLDEST)/bin/python -m pytest $(PARALLEL) \
	    -k "not (compile or export or onnx or dynamo or test_tracing or sharded)" \
	    tests/models tests/weights tests/images tests/features

coverage: $(TEST) ## The suite, and which lines of the package it runs
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered

docs: $(DOCS) ## Build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Those that need neither a download nor a GPU; the suite runs the Python of all pages.
docs-run: $(TRAIN) ## Run the commands of the first tutorials as they are printed; about 20 minutes
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/run_docs.py \
	    docs/tutorials/first_detector.md docs/tutorials/predict_and_deploy.md

release: $(TEST) ## Build wheel and sdist into dist/, and check them in a clean environment
	$(BIN)/python -m pip install --disable-pip-version-check --quiet build twine
	PYTHON=$(BIN)/python sh tools/check_release.sh dist

fuzz: $(TEST) ## Give readers and command lines made-up inputs for MINUTES (5) and count what happens
	$(BIN)/python tests/fuzz/run.py --minutes $(or $(MINUTES),5)

format: $(TEST) ## Rewrite the sources in the house style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Only what these targets made: data/ and work_dirs/ may hold a user's own sets and runs.
clean: ## Remove the environments, the quickstart's data and runs, and caches
	rm -rf .venv .venv-onedl .venv-oldest $(DATA) work_dirs/$(DETECTOR) work_dirs/$(SEGMENTOR)
	rm -rf build dist docs/_build docs/_generated .coverage *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
