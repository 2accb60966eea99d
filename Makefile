# Everything a newcomer needs; `make help` says what there is.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# A stamp carries the checksum of what it stands for: nothing is set up twice, nothing stale is kept.
RUNTIME := $(VENV)/runtime-$(shell cat requirements.txt pyproject.toml | cksum | cut -d ' ' -f 1)
TOOLS := $(VENV)/tools-$(shell cat requirements.txt pyproject.toml requirements-dev.txt | cksum | cut -d ' ' -f 1)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

# Two processes that compute share the cores politely: see DESIGN.md, choice 13.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo serve test chaos lint format bench-quality bench-trex bench-masked bench-limits bench-speed bench-serving clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: $(RUNTIME)  ## Run the main job on a real model: edit, score, promote, compare, roll back
	@$(BIN)/factedit demo

serve: $(RUNTIME)  ## Start the whole stack and leave it running; prints the URL and a key
	@$(BIN)/factedit serve --default-model

test: $(TOOLS)  ## Run all tests, two files at once, each on a thread
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

chaos: $(TOOLS)  ## Run the reliability tests in long rounds
	@FACTEDIT_CHAOS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability

lint: $(TOOLS)  ## Run ruff, mypy --strict and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TOOLS)  ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each finished cell is kept under .factedit/bench: what was cut off goes on where it was. Narrow it down by
# ARGS="--methods auto,memit --sizes 1,10"; OPTIONS are those of every command (--again, --device cuda …).
bench-quality: $(TOOLS)  ## Measure every editing method on public data (hours on a laptop; goes on where it was)
	@$(BIN)/python -m benchmarks.quality $(OPTIONS) run --sequences auto $(ARGS)
	@$(BIN)/python -m benchmarks.quality $(OPTIONS) report

bench-trex: $(TOOLS)  ## Measure modified and unmodified facts of T-REx, as "Modifying Memories" does
	@$(BIN)/python -m benchmarks.trex run $(ARGS)
	@$(BIN)/python -m benchmarks.trex report

bench-masked: $(TOOLS)  ## Train a small BERT on T-REx until it has memorised it, then edit it as the paper does
	@$(BIN)/python -m benchmarks.masked_lm train
	@$(BIN)/python -m benchmarks.masked_lm run $(ARGS)
	@$(BIN)/python -m benchmarks.masked_lm report

bench-limits: $(TOOLS)  ## Measure what this machine can do: matrix products, memory, fsync
	@$(BIN)/python -m benchmarks.limits

bench-speed: $(TOOLS)  ## Time auto, ft_m and ultraedit against naive fine-tuning (ARGS="--count 10")
	@$(BIN)/python -m benchmarks.edit_speed $(ARGS)

bench-serving: $(TOOLS)  ## Time /predict under load against the bare model and a plain server (ARGS="--clients 64")
	@$(BIN)/python -m benchmarks.predict_throughput $(ARGS)

clean:  ## Remove the virtual environment, all data and all caches
	rm -rf $(VENV) .factedit .factedit-test .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(RUNTIME):
ifeq ($(strip $(PYTHON)),)
	@echo "Factedit needs Python 3.11 or newer with its venv module (Debian: apt install python3.11-venv)." >&2
	@echo "If it is not on the PATH: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2
	@exit 1
endif
	@echo "Setting up $(VENV) (once; a few minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' requirements.txt)"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/runtime-*
	@touch $@

$(TOOLS): $(RUNTIME)
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	@rm -f $(VENV)/tools-*
	@touch $@
