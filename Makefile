# People and CI run the same targets. Every target creates the environment it needs.
#   make demo   from a prompt to a film strip, a grid and a page        make test   everything that is checked
#   make lab    the notebooks, in JupyterLab                            make quick  the checks of a minute and a half
#   make colab  the tests again, on the versions that Colab preinstalls
#   make docs   the documentation site                                  make hashes  constraints-hashes.txt
# VENV=path   another place for the environment      PYTHON=python3.12   another Python to create it with
# CPU=1       the CPU build of torch, on Linux without an NVIDIA GPU      PIP_ARGS=..  further arguments for pip
# HASHES=1    packages are installed only if their hashes are those of constraints-hashes.txt

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
CPU ?=
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
OUT ?= demo
BIN := $(VENV)/bin
HASHES ?=
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS)
STAMP := $(VENV)/.made-for-development
LAB_STAMP := $(VENV)/.made-for-fluxnb
COLAB ?= .venv-colab
COLAB_STAMP := $(COLAB)/.made-for-fluxnb
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

# Progress bars write seconds to stderr, which differ from run to run.
QUIET := TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
# One thread: sums in another order give other numbers, and a committed notebook holds numbers.
STEADY := OMP_NUM_THREADS=1 $(QUIET) PYTHONHASHSEED=0
# One test process per core, each with one thread; tests about threads set their number themselves.
PARALLEL := OMP_NUM_THREADS=1
# A process that is done takes tests from the others. nbval is for notebooks alone, and its import takes seconds.
SPREAD := -n auto --dist worksteal -p no:nbval

.PHONY: help env demo test quick long colab lab lint types imports format unit notebooks nbval claims docs hashes hero animations tables front-end front-end-check clean

help:
	@sed -n '2,10s/^# //p' Makefile

env: $(STAMP)

# If a file that the environment is made from is newer than the stamp, the environment is updated.
define environment
@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
@test -x $(BIN)/python || { echo "making $(VENV) (the first time takes a few minutes)"; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
$(if $(CPU),$(PIP) --no-deps --index-url $(CPU_WHEELS) --constraint constraints.txt torch)
$(if $(HASHES),$(PIP) --no-deps --require-hashes --requirement constraints-hashes.txt)
$(PIP) $(if $(HASHES),--no-build-isolation) --constraint constraints.txt --editable '.[$(1)]'
@touch $@
endef

# What the notebooks need.
$(LAB_STAMP): pyproject.toml constraints.txt
	$(call environment,lab)

# The same and what the tests and the site need.
$(STAMP): pyproject.toml constraints.txt
	$(call environment,dev)
	@touch $(LAB_STAMP)

demo: $(LAB_STAMP)
	$(BIN)/python -m fluxnb demo --out $(OUT)

lab: $(LAB_STAMP)
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

# Cheap checks first: a misspelled name should not cost ten minutes.
test: lint types imports front-end-check unit nbval
	@echo "all checks passed"

quick: lint imports $(STAMP)
	$(PARALLEL) $(BIN)/python -m pytest tests $(SPREAD) -m "not moderate and not slow and not long and not browser and not gpu"

# Tests with many trials, of which `make test` runs a few.
long: $(STAMP)
	$(PARALLEL) $(BIN)/python -m pytest tests -m long $(SPREAD) --durations=15

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The tests on the lower bounds. Without a browser and without the slow tests, which are about processes and disks and
# not about versions.
colab: $(COLAB_STAMP)
	$(PARALLEL) $(COLAB)/bin/python -m pytest tests -n auto --dist worksteal --ignore tests/train --ignore tests/browser --ignore tests/test_wheel.py --ignore tests/test_types.py --ignore tests/test_architecture.py -m "not slow and not long and not browser and not gpu" -p no:cacheprovider

$(COLAB_STAMP): pyproject.toml constraints-colab.txt
	@test -x $(COLAB)/bin/python || { echo "making $(COLAB), the versions of Colab"; $(PYTHON) -m venv $(COLAB); }
	$(COLAB)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --constraint constraints-colab.txt --editable '.[small]' hypothesis pytest pytest-xdist
	@touch $@

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

# It measures the time of display frames, so that no other test may run beside it.
FRAMES := tests/browser/test_explore.py::test_a_grid_of_200_cells_follows_the_slider_within_a_display_frame

unit: $(STAMP)
	$(PARALLEL) $(BIN)/python -m pytest tests $(SPREAD) -m "not gpu and not browser and not long" --durations=15
	$(BIN)/python -m pytest tests/browser -m "not gpu" -n 2 --dist loadfile -p no:nbval --durations=5 --deselect $(FRAMES)
	$(BIN)/python -m pytest $(FRAMES) -p no:nbval

# Strict: what a committed notebook prints, it prints again. One process per core, each with whole notebooks.
nbval: $(STAMP)
	@if [ -z "$(NOTEBOOKS)" ]; then echo "notebooks/ holds no notebook yet"; else \
	$(STEADY) $(BIN)/python -m pytest --nbval $(NOTEBOOKS) -n auto --dist loadfile --nbval-current-env --nbval-cell-timeout=300 \
	  --nbval-kernel-startup-timeout=120 --nbval-sanitize-with=tests/notebooks/nbval.cfg -p no:cacheprovider; fi

# Runs every notebook on pocket and writes it back with its outputs.
notebooks: $(STAMP)
	$(STEADY) $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 \
	  --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False $(NOTEBOOKS)
	$(STEADY) $(BIN)/python docs/tables.py

# The claims of the notebooks on 12 other prompts x 8 other seeds, into docs/claims.json; takes an hour or more on a CPU.
claims: $(STAMP)
	$(STEADY) $(BIN)/python docs/claims.py --long $(NOTEBOOKS)

# The JavaScript and CSS of the widgets, from the modules in front-end/src; needs node and npm.
front-end: front-end/node_modules/.package-lock.json
	cd front-end && npm run --silent format && npm run --silent build

# Lint, types and unit tests of the front end, and whether the bundles in the package are those of its modules.
front-end-check:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory front-end/node_modules/.package-lock.json && cd front-end && npm run --silent check; \
	elif [ -n "$${CI:-}" ]; then echo "npm is missing: on Debian, apt-get install nodejs npm"; exit 1; \
	else echo "skipped: the front end is not checked, because npm is missing"; fi

front-end/node_modules/.package-lock.json: front-end/package-lock.json
	cd front-end && npm ci --silent --no-audit --no-fund
	@touch $@

# The documentation site, in docs/_build/html, from the committed notebooks. The pages of the gallery are sampled first.
docs: docs/_build/gallery/gallery/words.html
	$(STEADY) $(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "the site is docs/_build/html/index.html"

docs/_build/gallery/gallery/words.html: docs/gallery.py fluxnb/pocket/card.json $(wildcard fluxnb/widgets/static/*) $(STAMP)
	$(STEADY) $(BIN)/python docs/gallery.py

# Versions and hashes of all packages of the environment, for every platform. Without torch and what it brings, since the
# installer chooses between its CPU and its CUDA builds.
hashes: $(STAMP)
	$(PIP) --constraint constraints.txt uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --constraint constraints.txt --universal --python-version 3.11 --quiet \
	  --generate-hashes --no-annotate --custom-compile-command "make hashes" --output-file constraints-hashes.txt
	awk '/^[^ ]/ {kept = !/^(torch|triton|cuda-|nvidia-)/} kept' constraints-hashes.txt > constraints-hashes.part
	mv constraints-hashes.part constraints-hashes.txt

# The picture at the top of the site's start page.
hero: $(STAMP)
	$(STEADY) $(BIN)/python docs/hero.py

# The animations of the README: pages of the package, operated in Chromium.
animations: $(STAMP)
	$(STEADY) $(BIN)/python docs/animations.py

# Tables of measurements in the README and the pages, and the list of notebooks.
tables: $(STAMP)
	$(STEADY) $(BIN)/python docs/tables.py

clean:
	rm -rf build dist docs/_build docs/_generated docs/notebooks/*.ipynb docs/notebooks/*.png $(OUT) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(COLAB)/*' -prune -exec rm -rf {} +
