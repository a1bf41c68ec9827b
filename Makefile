# maskd. `make` lists the verbs; `make run` and `make test` need only Python >= 3.10 with its headers, make and a C compiler.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
# Where to get torch from, instead of PyPI. Without a GPU the CPU build is a tenth of the download:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := pyproject.toml .ci/constraints.txt maskd/native/shm.c maskd/native/maskd_shm.h maskd/native/rows.h
# Clients that contradict the pins above have an environment of their own.
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed
PORT ?= 8000
FUZZ ?= 20
# Files of the pure core, none = all of them:  make mutants MUTANTS=maskd/backends/gate.py
MUTANTS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROTO := proto/maskd/v1/mask_service.proto
# pip tells of every requirement several times; what is fetched and installed is enough.
PROGRESS := | awk '/^ *(Downloading|Building|Installing)/ {print "  " substr($$0, 1, 110); fflush()}'

.DEFAULT_GOAL := help
.PHONY: help install run serve test lint types fmt proto bench bench-engine bench-schemas chaos conformance fuzz mutants all clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install everything, pinned
$(STAMP): $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "maskd needs Python 3.10 or newer: make PYTHON=python3.12 …"; exit 1; }
	@command -v cc >/dev/null || { echo "maskd needs a C compiler (cc), for one small extension"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "Python.h is missing; install the headers of Python (python3-dev)"; exit 1; }
	@test -x $(BIN)/python || { echo "· creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "· installing pinned packages (some minutes the first time; torch is the largest)"
	@$(PIP) install -c .ci/constraints.txt torch setuptools $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PROGRESS)
	@$(PIP) install -c .ci/constraints.txt --no-build-isolation -e '.[engine,dev]' $(PROGRESS)
	@touch $@

run: $(STAMP) ## start the daemon, decode a batch with three grammars, print the valid documents
	@$(BIN)/python -m engine_adapter demo

serve: $(STAMP) ## answer OpenAI, LoRAX and Ollama clients on http://127.0.0.1:PORT (PORT=8000)
	@$(BIN)/python -m engine_adapter serve --port $(PORT)

$(CLIENTS_STAMP): .ci/clients.txt $(STAMP)
	@echo "· installing the clients that the server is tested with, pinned, into $(CLIENTS)"
	@test -x $(CLIENTS)/bin/python || $(BIN)/python -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check install -r .ci/clients.txt $(PROGRESS)
	@touch $@

test: $(STAMP) $(CLIENTS_STAMP) ## the whole suite; pytest's summary is the last thing printed
	@$(BIN)/python -m pytest -n auto --dist loadgroup

lint: $(STAMP) ## ruff, import-linter, and that the generated code is fresh
	@echo "· ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "· import-linter"
	@$(BIN)/lint-imports --no-cache
	@echo "· maskd/v1 is what $(PROTO) generates"
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out="$$fresh" --pyi_out="$$fresh" --grpc_python_out="$$fresh" $(PROTO); \
	for file in "$$fresh"/maskd/v1/*; do diff -u "maskd/v1/$${file##*/}" "$$file" || { echo "run 'make proto'"; exit 1; }; done

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

fmt: $(STAMP) ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(STAMP) ## generate maskd/v1 from proto/
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

bench: $(STAMP) ## in-process, shared memory and gRPC side by side
	@$(BIN)/python -m tests.bench.step

bench-engine: $(STAMP) ## tokens a second with no grammar, masks in process, and maskd
	@$(BIN)/python -m tests.bench.engine

bench-schemas: $(STAMP) ## compile and mask times of real schemas beside llguidance's front end; needs the data: DATA=directory
	@$(BIN)/python -m tests.bench.schemas $(if $(DATA),--data $(DATA)/dev.jsonl)

conformance: $(STAMP) ## how exactly each front end does JSON Schema; needs the data: DATA=directory
	@$(BIN)/python -m tests.conformance --write $(if $(DATA),--data $(DATA))

chaos: $(STAMP) ## kill, stop and corrupt things under load; every row must still be right
	@$(BIN)/python -m tests.bench.chaos

fuzz: $(STAMP) ## many wild inputs: FUZZ=20 times as many as make test tries
	@MASKD_FUZZ=$(FUZZ) $(BIN)/python -m pytest -k "fuzz or ring" --timeout 0

mutants: $(STAMP) ## change one thing at a time in the pure core; the unit tests must notice
	@$(BIN)/python -m tests.mutants $(MUTANTS)

all: lint types test ## everything that must hold

clean: ## remove the virtual environment and build products
	@rm -rf $(VENV) $(CLIENTS) build *.egg-info maskd/*.so
