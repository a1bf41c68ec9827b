# maskd. `make` lists the verbs; run and test need nothing but Python >= 3.10, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := pyproject.toml .ci/constraints.txt maskd/native/shm.c maskd/native/maskd_shm.h
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch first and exactly: the pin is the CPU build where one is provided, a range would take the newest CUDA build.
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help install run test lint fmt types proto bench all clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install everything, pinned
$(STAMP): $(INPUTS)
	@test -x $(BIN)/python || { echo "· creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "· installing (a few minutes the first time)"
	@$(PIP) install --quiet --progress-bar off -c .ci/constraints.txt $(TORCH)
	@$(PIP) install --quiet --progress-bar off -c .ci/constraints.txt -e '.[engine,dev]'
	@touch $@

run: $(STAMP) ## start the daemon, decode three grammars in one batch, print a valid JSON document
	@$(BIN)/python -m engine_adapter demo

test: $(STAMP) ## the whole suite
	@$(BIN)/python -m pytest -n auto --dist loadgroup

lint: $(STAMP) ## ruff, import-linter, and that generated code is fresh
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=build --pyi_out=build --grpc_python_out=build proto/maskd/v1/mask_service.proto

fmt: $(STAMP) ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

proto: $(STAMP) ## generate maskd/v1 from proto/
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/maskd/v1/mask_service.proto

bench: $(STAMP) ## in-process, shared memory and gRPC side by side
	@$(BIN)/python -m tests.bench.step

all: lint types test ## everything that must hold

clean: ## remove the virtual environment and build products
	@rm -rf $(VENV) build *.egg-info maskd/*.so
