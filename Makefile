# Everything from a bare checkout: Python 3.10 or newer, pip and venv are all that is needed.
#   make train PYTHON=python3.12      another interpreter
#   make test VENV=/path/to/env       an existing environment, used as it is

PYTHON ?= python3
VENV ?= .venv
VENV_ONEDL ?= .venv-onedl

# A worker per core; a file stays on one worker, which keeps what its tests share.
PARALLEL := -n auto --dist loadfile

# OpenMP's threads wait asleep: on a busy machine, waiting threads that spin cost more than the work.
export OMP_WAIT_POLICY ?= passive

DATA := data/quickstart
DETECTOR := mask-rcnn_convnext-atto_fpn_quickstart
SEGMENTOR := upernet_convnext-atto_quickstart

BIN = $(VENV)/bin
STAMP = $(VENV)/.convnext_backbone
STAMP_ONEDL = $(VENV_ONEDL)/.convnext_backbone

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train train-segmentation test test-onedl lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment that the caller names is the caller's: this checkout is put before whatever is
# installed there, and nothing is installed.
ifeq ($(origin VENV),file)
$(STAMP): setup.cfg pyproject.toml
	$(call install,$(VENV),openmmlab$(,)quickstart$(,)test)
else
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
$(STAMP):
	@test -x $(BIN)/python || { echo "VENV=$(VENV) holds no bin/python" >&2; exit 2; }
endif

$(STAMP_ONEDL): setup.cfg pyproject.toml
	$(call install,$(VENV_ONEDL),onedl$(,)quickstart$(,)test)

, := ,
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "$(PYTHON) is older than Python 3.10; set PYTHON=" >&2; exit 2; }
	@echo "Installing into $(1); PyTorch is large, so this takes a few minutes"
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --disable-pip-version-check -e '.[$(2)]'
	@touch $@
endef

train: $(STAMP) ## Build the data, train the detector, validate it and draw what it predicts
	$(BIN)/python tools/make_quickstart_data.py --out $(DATA)
	$(BIN)/python tools/train.py configs/quickstart/$(DETECTOR).py
	$(BIN)/python tools/draw_quickstart.py configs/quickstart/$(DETECTOR).py \
	    "$$(cat work_dirs/$(DETECTOR)/last_checkpoint)" --out work_dirs/$(DETECTOR)/predictions.png

train-segmentation: $(STAMP) ## The same for the segmentor
	$(BIN)/python tools/make_quickstart_data.py --out $(DATA)
	$(BIN)/python tools/train.py configs/quickstart/$(SEGMENTOR).py
	$(BIN)/python tools/draw_quickstart.py configs/quickstart/$(SEGMENTOR).py \
	    "$$(cat work_dirs/$(SEGMENTOR)/last_checkpoint)" --out work_dirs/$(SEGMENTOR)/predictions.png

lint: $(STAMP) ## Style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

test: lint ## Style, types and the whole suite
	$(BIN)/python -m pytest $(PARALLEL)

test-onedl: $(STAMP_ONEDL) ## The OpenMMLab part of the suite on the onedl packages
	$(VENV_ONEDL)/bin/python -m pytest $(PARALLEL) tests/openmmlab tests/configs tests/tools

format: $(STAMP) ## Rewrite the sources in the house style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Only what these targets made: data/ and work_dirs/ may hold a user's own sets and runs.
clean: ## Remove the environments, the quickstart's data and runs, and caches
	rm -rf .venv .venv-onedl $(DATA) work_dirs/$(DETECTOR) work_dirs/$(SEGMENTOR)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
