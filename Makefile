# make demo         set up .venv with pinned versions and show what the package does
# make test         the same with test tools, then lint, types and the default test tier
# make test-oldest  the tests that meet transformers, on its oldest supported version
# make bench-cpu    speed on this machine's CPU: the shipped model, 0.5B with random weights, decisions
# make bench-gpu    speed on a CUDA device; needs only torch, transformers and triton
# make test-lmms    one lmms-eval run with and without compression, in a venv of its own (.lmms)
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check install -qq
STAMPS := $(VENV)/.stamps
OLDEST := .oldest
OLDEST_TESTS := tests/hf tests/packed tests/pipeline tests/integrations tests/tiny tests/cli \
	tests/bench/speed tests/bench/test_flops.py tests/bench/test_flops_families.py \
	tests/bench/test_answering.py tests/test_models_page.py tests/test_compose.py tests/test_plugins.py
LMMS   := .lmms
TORCH  := $(shell grep -E '^torch==' requirements/base.txt)

.PHONY: help demo test test-oldest test-lmms bench-cpu bench-gpu lint setup clean

help:
	@sed -n 's/^# //p' Makefile | head -6

demo: $(STAMPS)/base
	$(VENV)/bin/earlytom demo

test: lint
	$(PY) -m pytest -q -n auto

test-oldest: $(OLDEST)/.stamp
	PYTHONPATH=$(OLDEST) $(PY) -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(OLDEST) $(PY) -m pytest -q -n auto $(OLDEST_TESTS)

test-lmms: $(LMMS)/.stamp
	$(LMMS)/bin/python -m pytest -q -m slow tests/integrations/test_lmms_run.py

# about 15 minutes on two idle cores; other work on the machine spoils the times
bench-cpu: $(STAMPS)/base
	$(VENV)/bin/earlytom bench --methods earlytom,earlytom-official,afterimage,visionzip,holitom --repeats 15 --out results
	$(VENV)/bin/earlytom bench --arch llava-onevision-0.5b --frames 16 --ratios 0.25,0.1 --methods earlytom,afterimage --dtype bfloat16 --repeats 3 --new-tokens 4 --out results
	$(PY) benchmarks/decision.py --out results

# in whatever environment there is: nothing is installed
bench-gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --out results

lint: $(STAMPS)/test
	$(PY) -m ruff check --extend-exclude $(OLDEST),$(LMMS) .
	$(PY) -m ruff format --check --extend-exclude $(OLDEST),$(LMMS) .
	$(PY) -m mypy

setup: $(STAMPS)/test

clean:
	rm -rf $(VENV) $(OLDEST) $(LMMS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed (make PYTHON=...)")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# torch first, by its exact pin; then the rest; then this package without looking at its dependencies
$(STAMPS)/base: requirements/base.txt pyproject.toml $(STAMPS)/venv
	$(PIP) $(TORCH)
	$(PIP) -r requirements/base.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(STAMPS)/test: requirements/test.txt $(STAMPS)/base
	$(PIP) -r requirements/test.txt
	@touch $@

$(OLDEST)/.stamp: requirements/oldest.txt $(STAMPS)/test
	rm -rf $(OLDEST)
	$(PIP) --no-deps --target $(OLDEST) -r requirements/oldest.txt
	@touch $@

$(LMMS)/.stamp: requirements/base.txt requirements/lmms.txt pyproject.toml
	@test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq $(TORCH)
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq -r requirements/base.txt
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq --no-deps -r requirements/lmms.txt
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@
