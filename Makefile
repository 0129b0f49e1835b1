# `make` lists the targets. Each sets up what it needs first (bootstrap.py); when nothing has changed that is
# a glance. Plain make (3.81 is enough) and plain sh. make demo PYTHON=/path/to/python chooses the interpreter.

.DEFAULT_GOAL := help
.PHONY: help demo recipes site test lab check reset bench lint format constraints setup clean

BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# In a container one is root, and JupyterLab wants to be told so. LAB: more options, e.g. LAB=--no-browser.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# What says that all recipes have run to their ends.
MADE := outputs/demo/.made
# -E -a: everything anew, so that nothing of before stays; -W: a link to nowhere stops it.
SPHINX := $(BIN)/python -m sphinx -q -E -a -W --keep-going -c docs -d outputs/.site/doctrees
NBSTRIPOUT := $(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" \
	--drop-tagged-cells injected-parameters

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: setup  ## run all recipes offline, in one sandbox; the executed notebooks go to outputs/demo
	$(BIN)/python -m helpers sandbox -- $(MAKE) --no-print-directory recipes

# One story: what is ordered (1, 2), archived (3, 4) and converted (5) is catalogued in the end (6);
# the chain as it is then is in notebook 0.
recipes:
	$(BIN)/python -m helpers run $(wildcard notebooks/[12]_*.ipynb) --jobs 2 -o outputs/demo
	$(BIN)/python -m helpers run $(wildcard notebooks/[34]_*.ipynb) -p dry_run false --jobs 2 -o outputs/demo
	$(BIN)/python -m helpers run $(wildcard notebooks/5_*.ipynb) -o outputs/demo
	$(BIN)/python -m helpers run $(wildcard notebooks/6_*.ipynb) -o outputs/demo
	$(BIN)/python -m helpers run $(wildcard notebooks/0_*.ipynb) -o outputs/demo
	@touch $(MADE)

site: setup $(MADE)  ## the executed notebooks and the docs as a web site, to outputs/site; LINKS=check tries those to elsewhere
	rm -rf outputs/.site
	$(SPHINX) -b html . outputs/.site/html
	$(if $(LINKS),$(SPHINX) -b linkcheck . outputs/.site/links)
	rm -rf outputs/site && mv outputs/.site/html outputs/site
	@echo "The web site: outputs/site/index.html"

$(MADE): $(NOTEBOOKS) $(wildcard helpers/*.py helpers/*/*.py)
	$(MAKE) --no-print-directory demo

test: BOOTSTRAP := --browser
test: setup  ## run all tests, offline
	$(BIN)/python -m pytest -n auto --dist worksteal

lab: setup  ## open JupyterLab with the sandbox beside it; both stop together
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m helpers sandbox -- jupyter lab notebooks $(ROOT) $(LAB)

check: setup  ## say what is here, what is configured and what is missing
	$(BIN)/python -m helpers check

reset: setup  ## do all notebooks again: says what goes (never settings, nor live runs), and asks; RESET="--yes --notebooks"
	@$(BIN)/python -m helpers reset $(RESET)

bench: setup  ## time notebooks, downloads, archiving, converting, cataloguing beside their peers; to outputs/benchmarks
	$(BIN)/python benchmarks/notebooks.py
	$(BIN)/python benchmarks/downloads.py
	$(BIN)/python benchmarks/archive.py
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/catalog.py
	$(BIN)/python benchmarks/workshop.py

lint: setup  ## check style, and that the notebooks are clean
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(NBSTRIPOUT) --verify $(NOTEBOOKS) \
		|| { echo "To fix what can be fixed by itself: make format" >&2; exit 1; }

format: setup  ## mend style, and strip outputs and papermill's traces from the notebooks
	$(NBSTRIPOUT) $(NOTEBOOKS)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

constraints: setup  ## pin what pyproject.toml asks for; UPGRADE=1 moves to the newest releases
	$(BIN)/uv pip compile pyproject.toml --group test --group browser --group site --group dev --group build --quiet $(if $(UPGRADE),--upgrade) \
		--universal --python $(BIN)/python --python-version 3.13 --generate-hashes --no-header --no-annotate \
		--output-file constraints.txt >/dev/null

setup:  ## only set up .venv
	@for python in $(BIN)/python python3 python python3.14 python3.13 python3.12 python3.11 python3.10 python3.9; do \
		if "$$python" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then \
			exec "$$python" bootstrap.py $(BOOTSTRAP); \
		fi; \
	done; \
	if command -v uv >/dev/null; then exec uv run --quiet --no-project --python 3.13 bootstrap.py $(BOOTSTRAP); fi; \
	echo "No Python found to set things up with. On Debian or Ubuntu: sudo apt install python3 python3-pip" >&2; \
	exit 1

clean:  ## remove the environment, caches and outputs; .env_tutorial stays
	rm -rf .venv .tools outputs .pytest_cache .ruff_cache
	find helpers tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
