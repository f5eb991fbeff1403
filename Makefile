# Everything a newcomer needs: `make demo` and `make test` create .venv, install the lock, and run.
# A second call does not reinstall: .venv/.installed is newer than the lock and pyproject.toml.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true


# Where shapes are checked at run time, in tests only: wherever arrays are passed.
CHECKED := mstar.slides,mstar.features,mstar.data,$\
	mstar.models.aggregator,mstar.models.nystrom,mstar.models.ppeg,mstar.models.favor,$\
	mstar.models.gene_encoder,mstar.models.text_encoder,mstar.models.multimodal,mstar.models.stage1_files,mstar.models.exports,$\
	mstar.models.patch_encoders,mstar.models.loaded_encoder,mstar.models.cuda_batches,mstar.models.transforms,$\
	mstar.models.student,mstar.models.ema,mstar.models.heads,mstar.models.histgen,mstar.downstream.report_generation,mstar.losses.classification,mstar.losses.survival,$\
	mstar.downstream.bags,mstar.downstream.bag_files,mstar.downstream.stream,mstar.downstream.trainer,$\
	mstar.downstream.population,mstar.downstream.fold_views,mstar.downstream.objectives,mstar.downstream.evaluate,$\
	mstar.downstream.model_files,mstar.downstream.predictions,mstar.downstream.study,mstar.downstream.statistics,$\
	mstar.downstream.results,mstar.downstream.curves,mstar.downstream.figures,mstar.downstream.prediction_parts,$\
	mstar.embed.packing,mstar.embed.sources,mstar.embed.worker,mstar.embed.slide_writer,mstar.evidence,beartype.beartype

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format bench lock

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(INSTALLED)  ## Create .venv and install the locked versions

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or 3.12 is needed; name one with make PYTHON=...") if not (3, 11) <= sys.version_info < (3, 13) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked versions into .venv (about 2 GB, some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(INSTALLED)  ## A real slide from pixels to features, on this machine, in minutes
	@$(BIN)/mstar demo --out demo-out

test: $(INSTALLED)  ## The tests, without the long ones
	@$(BIN)/python -m pytest -m "not slow and not gpu" --durations=25 --jaxtyping-packages=$(CHECKED)

test-all: $(INSTALLED)  ## All tests; writes date, commit and result to platform/docs/acceptance.md
	@$(BIN)/python -m pytest -m "not gpu" --jaxtyping-packages=$(CHECKED); \
	code=$$?; $(BIN)/python tests/record_result.py $$code; exit $$code

check: $(INSTALLED)  ## Formatting, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(INSTALLED)  ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## The figures of platform/docs/performance.md, as ratios in one run
	@$(BIN)/python tests/benchmarks/run_all.py $(ONLY)

lock:  ## Resolve pyproject.toml anew and write requirements.lock
	@$(PYTHON) tests/make_lock.py
