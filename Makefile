# Everything happens in .venv; no root, no Docker, no GPU needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A machine with a GPU runs every test, any other all but those that need one.
MARKERS := $(if $(shell command -v nvidia-smi),,-m "not gpu")

.PHONY: demo test lint docs format clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    install and run the main job: train, fit, export, serve, ask, measure"
	@echo "make test    install and run every test that this machine can"
	@echo "make lint    ruff, mypy and the layers of packages"
	@echo "make docs    build the site in build/site"
	@echo "make format  let ruff rewrite what it can"
	@echo "make clean   remove .venv and caches; runs/ stays"

demo: $(VENV)/.all
	$(BIN)/plurum demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --durations=15 $(MARKERS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps: installed again when the dependencies change.
$(VENV)/.all $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e ".[$*]"
	@touch $@
