# `make test` and `make demo` set themselves up in a fresh clone: Python >= 3.11, make, gcc, PyPI.

VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ditaccel-ready
WORKERS ?= 2
DEMO_OUT ?= demo-out
MYPY_TREE := .mypy_cache/tree

# -P: the top-level folder `kernels` would otherwise shadow the Hub package that diffusers imports.
PYTEST := $(PY) -P -m pytest --import-mode=importlib -n $(WORKERS) --dist loadgroup
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-rotated support-table docs docs-site dist versions lint format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv with pinned versions (the other targets do it for you)

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x "$(PY)" ]; then \
	  python=""; \
	  for candidate in $(PYTHON) python3 python3.11 python3.12 python3.13 python; do \
	    if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
	      >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "make: no Python >= 3.11 with the venv module was found." >&2; \
	    echo "make: install one (Debian: apt-get install python3 python3-venv)," >&2; \
	    echo "make: or name it: make test PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "setup: creating $(VENV) with $$("$$python" --version 2>&1)"; \
	  "$$python" -m venv "$(VENV)"; \
	fi; \
	if ! "$(PY)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "make: $(VENV) holds a Python older than 3.11; run 'make clean' and try again." >&2; \
	  exit 1; \
	fi; \
	echo "setup: installing pinned packages (once; some minutes and about 3 GB)"; \
	if ! { "$(PY)" -m pip install --quiet -c constraints.txt setuptools wheel && \
	       "$(PY)" -m pip install --quiet --no-build-isolation -c constraints.txt \
	         -e '.[eval,peers,ray,dev]'; }; then \
	  echo "make: the packages could not be installed (pip's reason stands above)." >&2; \
	  echo "make: check that PyPI can be reached, then run the same command again." >&2; \
	  exit 1; \
	fi; \
	touch $(STAMP)

demo: $(STAMP) ## evaluate the shipped sample models (minutes on 2 cores) and write an HTML report
	@HF_HUB_OFFLINE=1 $(PY) -P -m ditaccel.eval.shapes.demo --out $(DEMO_OUT)

test: $(STAMP) ## the tests that need neither a GPU nor minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTEST) -q -m "not slow and not gpu" $(ARGS)

test-all: $(STAMP) ## all tests, slow ones too (those for a GPU skip where there is none)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTEST) -q --timeout 1500 -m "slow or not slow" $(ARGS)

# Which eighth it is depends on the commit, so that all slow tests run every few commits.
test-rotated: $(STAMP) ## an eighth of the slow tests, chosen by the commit, at most 30 minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTEST) -q --timeout 1500 -m "slow and not gpu and not alone" --durations 15 \
	  --rotate $(or $(COMMIT),$(shell git rev-parse HEAD)) --minutes 30 $(ARGS)

# mypy cannot follow setuptools' package-dir, so it gets the tree as it is imported.
support-table: $(STAMP) ## measure families without results, then write the tables of the READMEs
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	  $(PY) -P tests/conformance/support_table.py $(ARGS)
	@$(MAKE) --no-print-directory docs

docs: $(STAMP) ## write the tables of the READMEs from the classes and results that they describe
	PYTHONPATH=tests/support:tests/conformance HF_HUB_OFFLINE=1 $(PY) -P tests/conformance/generated_docs.py

SITE_VENV := .venv-docs
$(SITE_VENV)/.ready: .docs/requirements.txt
	@$(PY) -m venv $(SITE_VENV)
	@$(SITE_VENV)/bin/pip install --quiet -r .docs/requirements.txt
	@touch $@

# Its tools have an environment of their own: nothing else needs them, and they need nothing of ours.
docs-site: $(STAMP) $(SITE_VENV)/.ready ## build the documentation as a static site, in build/site
	@$(SITE_VENV)/bin/python .docs/build.py --python $(abspath $(PY)) $(ARGS)

dist: $(STAMP) ## build the source distribution and the wheel into dist/
	@rm -rf build dist
	$(PY) -P -m build --no-isolation

versions: $(STAMP) ## the tests that depend on diffusers, under each version that is promised
	$(PY) -P tests/conformance/version_matrix.py $(ARGS)

lint: $(STAMP) ## ruff check, ruff format --check and mypy
	$(PY) -P -m ruff check .
	$(PY) -P -m ruff format --check .
	@rm -rf $(MYPY_TREE) && mkdir -p $(MYPY_TREE)/ditaccel
	@ln -s $(CURDIR)/ditaccel/* $(MYPY_TREE)/ditaccel/
	@ln -s $(CURDIR)/kernels $(CURDIR)/pipelines $(CURDIR)/eval $(MYPY_TREE)/ditaccel/
	cd $(MYPY_TREE) && $(abspath $(PY)) -P -m mypy --cache-dir $(CURDIR)/.mypy_cache --config-file $(CURDIR)/pyproject.toml -p ditaccel

format: $(STAMP) ## let ruff mend what it can
	$(PY) -P -m ruff check --fix .
	$(PY) -P -m ruff format .

clean: ## remove the environment, caches, builds and demo output
	rm -rf $(VENV) $(SITE_VENV) build dist demo-out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
