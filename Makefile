# Everything happens in .venv; no root, no Docker, no GPU needed.
PYTHON ?= $(firstword $(shell command -v python3 python3.14 python3.13 python3.12 python3.11 python3.10) python3)
VENV := .venv
BIN := $(VENV)/bin
# A machine with a GPU runs every test, any other all but those that need one.
GPU := $(if $(shell command -v nvidia-smi),or gpu,and not gpu)
# Tests work with real processes and servers: one that fails is run once more, and the summary lists it (RERUN).
PYTEST = $(BIN)/python -m pytest --reruns 1 -rR

.PHONY: demo test test-fast measure-tests lint docs dist format clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    install and run the main job: train, fit, export, serve, ask, measure"
	@echo "make test    install and run every test that this machine can"
	@echo "make test-fast  the tests that take less than half a second each; make measure-tests finds those that don't"
	@echo "make lint    ruff, mypy and the layers of packages"
	@echo "make docs    build the site in build/site"
	@echo "make dist    build and check the wheel and the source distribution in build/dist"
	@echo "make format  let ruff rewrite what it can"
	@echo "make clean   remove .venv and caches; runs/ stays"

demo: $(VENV)/.all
	$(BIN)/plurum demo

# Failed tests (code 1) don't keep the next stage from running; Ctrl-C does. The last stage runs its tests one after
# another, because they measure times or share a GPU.
test: $(VENV)/.dev
	@failed=0; stage() { set -x; $(PYTEST) "$$@" || { code=$$?; [ $$code = 1 ] || exit $$code; failed=1; }; }; \
	stage; \
	stage -n 3 --durations=15 -m "(slow or triton) and not (timing or gpu)"; \
	stage -n 0 --durations=15 -m "(slow or triton) and timing $(GPU)"; \
	exit $$failed

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest --fast

measure-tests: $(VENV)/.dev
	$(BIN)/python -m pytest --measure

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# A release is what is tagged with its version: the check fails where a tag and the version differ.
dist: $(VENV)/.dev
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist . >/dev/null
	$(BIN)/twine check --strict build/dist/*
	$(BIN)/check-wheel-contents build/dist/*.whl
	@tag=$$(git tag --points-at HEAD 'v*'); test -z "$$tag" || ls build/dist/plurum-$${tag#v}-py3-none-any.whl

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info

# The embedded server needs Python 3.10 to 3.12; where another serves, or none is to be had, that is told first.
$(BIN)/python:
	@command -v tritonserver >/dev/null || $(PYTHON) serving/installation/interpreters.py \
	  "$${XDG_CACHE_HOME:-$$HOME/.cache}/plurum" >/dev/null
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif command -v uv >/dev/null; then uv venv --quiet --seed $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m pip install --quiet --target build/uv uv && build/uv/bin/uv venv --quiet --seed $(VENV); \
	else echo "make: expected python3 with venv, or uv. Debian, Ubuntu: apt-get install python3-venv; Fedora: dnf install" \
	  "python3; elsewhere: install uv." >&2; exit 2; fi

# The stamps: installed again when the dependencies change.
$(VENV)/.all $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/python
	@# Without a GPU, PyTorch needs no CUDA packages (3 GB); only uv knows the index of those without.
	@command -v nvidia-smi >/dev/null || ! command -v uv >/dev/null || \
	  uv pip install --python $(BIN)/python --torch-backend=cpu 'torch>=2.6' 'torchvision>=0.21' || \
	  echo "PyTorch's CPU packages can't be reached: installing those with CUDA" >&2
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e ".[$*]"
	@touch $@
