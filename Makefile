# SPDX-License-Identifier: Apache-2.0
# penstock's commands for people. Everything is made in .venv and .cache inside this folder.
#
#   make demo     see it work            make test     run all tests
#   make setup    only install           make bench    measure beside the kernel and others
#
# PYTHON=/path/to/python3 picks the interpreter (3.11 or later); ARGS="..." goes to pytest or bench.

SHELL := /bin/sh
.SUFFIXES:
.DELETE_ON_ERROR:

PYTHON ?= /usr/bin/python3
VENV := .venv
ARGS ?=
INPUTS := pyproject.toml packaging/debian-packages.txt tools/bootstrap.py
STAMPS := $(VENV)/.ready-run $(VENV)/.ready-test $(VENV)/.ready-bench

# An environment does not survive being moved or another interpreter: its scripts hold absolute paths.
WANTED := $(CURDIR) $(PYTHON)
ifneq ($(shell cat $(VENV)/.made-for 2>/dev/null),$(WANTED))
.PHONY: $(STAMPS)
endif

.PHONY: help setup demo test test-long bench bench-peers lint format clean

help:
	@echo "make setup    install into .venv; the command is .venv/bin/penstock"
	@echo "make demo     make an ext4 image, mount it, read it, unmount it"
	@echo "make test     all tests (ARGS='-k name' to pick)"
	@echo "make test-long  tests of minutes: a million random operations on each filesystem"
	@echo "make bench    measure images beside the kernel's ext4 and fuse2fs, directories beside libfuse's"
	@echo "              examples, pyfuse3 and mfusepy (ARGS='--quick' for a short run, 'image', 'mirror')"
	@echo "make bench-peers  fetch and build those others into .cache/peers"
	@echo "make lint     ruff, mypy and the import rules"
	@echo "make format   let ruff rewrite the sources"
	@echo "make clean    remove .venv, caches and built files"

setup: $(VENV)/.ready-run
	@echo "ready: $(CURDIR)/$(VENV)/bin/penstock"

$(STAMPS): $(VENV)/.ready-%: $(INPUTS)
	@test -x "$(PYTHON)" || command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: $(PYTHON) is not there. Install it (apt-get install python3) or name another:" \
	       "make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -I tools/bootstrap.py $*
	@printf '%s\n' '$(WANTED)' > $(VENV)/.made-for
	@touch $@

demo: $(VENV)/.ready-run
	@demo/run.sh

test: $(VENV)/.ready-test
	@$(VENV)/bin/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-long: $(VENV)/.ready-test
	@$(VENV)/bin/python -m pytest -m long -n 0 $(ARGS)

bench: $(VENV)/.ready-bench
	@$(VENV)/bin/python -m bench $(ARGS)

bench-peers: $(VENV)/.ready-bench
	@$(VENV)/bin/python -m bench.build_peers

lint: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m tools.layers

format: $(VENV)/.ready-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests bench tools examples -name __pycache__ -type d -prune -exec rm -rf {} +
