# make demo         set up .venv with pinned versions and show what the package does
# make test         the same with test tools, then lint, types and the default test tier
# make test-oldest  the tests that meet transformers, on its oldest supported version
# make test-dist    builds wheel and sdist, installs and runs them, checks Dockerfiles and forms
# make docs         the documentation site, in build/docs; neither torch nor a model is needed
# make test-app     tests of the web page, in a browser where there is one, with Gradio in .app
# make bench-cpu    speed on this machine's CPU: the shipped model, 0.5B with random weights, decisions
# make bench-gpu    speed on a CUDA device; needs only torch, transformers and triton
# make test-lmms    one lmms-eval run with and without compression, in a venv of its own (.lmms)
# make test-vllm    vLLM on the CPU answers as transformers does, in a venv of its own (.vllm)
# make serve-demo   serve the shipped model with vLLM on the CPU and ask it about a video over HTTP
# make bench-serve  two servers under load, compression off and on, on this machine's CPU
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check install -qq
STAMPS := $(VENV)/.stamps
OLDEST := .oldest
OLDEST_TESTS := tests/hf tests/packed tests/pipeline tests/stream tests/integrations tests/tiny tests/cli \
	tests/bench/speed tests/bench/test_flops.py tests/bench/test_flops_families.py \
	tests/bench/test_answering.py tests/test_models_page.py tests/test_compose.py tests/test_plugins.py
LMMS   := .lmms
VLLM   := .vllm
APP    := .app
DIST   := .dist
DOCS   := .docs
TORCH  := $(shell grep -E '^torch==' requirements/base.txt)

.PHONY: help demo test test-oldest test-lmms test-vllm serve-demo bench-serve test-app test-dist hooks docs bench-cpu bench-gpu lint setup clean

help:
	@sed -n 's/^# //p' Makefile | head -12

demo: $(STAMPS)/base
	$(VENV)/bin/earlytom demo

test: lint
	$(PY) -m pytest -q -n auto

test-oldest: $(OLDEST)/.stamp
	PYTHONPATH=$(OLDEST) $(PY) -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(OLDEST) $(PY) -m pytest -q -n auto $(OLDEST_TESTS)

test-lmms: $(LMMS)/.stamp
	$(LMMS)/bin/python -m pytest -q -m slow tests/integrations/test_lmms_run.py

test-vllm: $(VLLM)/.stamp
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -q -m vllm tests/vllm_plugin $(if $(PARITY),--parity $(PARITY))
	$(VLLM)/bin/python -m pytest -q tests/pipeline/test_official.py  # needs torchvision

serve-demo: $(VLLM)/.stamp
	OMP_NUM_THREADS=1 $(VLLM)/bin/python benchmarks/serve_demo.py

# about 10 minutes on two idle cores; other work on the machine spoils the times
bench-serve: $(VLLM)/.stamp
	OMP_NUM_THREADS=1 $(VLLM)/bin/python benchmarks/serve_load.py --out results

test-app: $(APP)/.stamp
	PYTHONPATH=$(APP) $(PY) -m pytest -q -n auto -m 'not gpu and not vllm' tests/app tests/inspector/test_browser.py

test-dist: $(STAMPS)/test $(DIST)/.stamp
	$(PY) -m pytest -q -m slow tests/dist

# formats and lints at every commit
hooks: $(STAMPS)/test $(DIST)/.stamp
	$(DIST)/bin/pre-commit install

docs: $(DOCS)/.stamp
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --clean
	@echo "build/docs/index.html"

# about 15 minutes on two idle cores; other work on the machine spoils the times
bench-cpu: $(STAMPS)/base
	$(VENV)/bin/earlytom bench --methods earlytom,earlytom-official,afterimage,visionzip,holitom --repeats 15 --out results
	$(VENV)/bin/earlytom bench --arch llava-onevision-0.5b --frames 16 --ratios 0.25,0.1 --methods earlytom,afterimage --dtype bfloat16 --repeats 3 --new-tokens 4 --out results
	$(PY) benchmarks/decision.py --out results

# in whatever environment there is: nothing is installed
bench-gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --out results

lint: $(STAMPS)/test
	$(PY) -m ruff check --extend-exclude $(OLDEST),$(LMMS),$(VLLM),$(APP),$(DIST),$(DOCS) .
	$(PY) -m ruff format --check --extend-exclude $(OLDEST),$(LMMS),$(VLLM),$(APP),$(DIST),$(DOCS) .
	$(PY) -m mypy

setup: $(STAMPS)/test

clean:
	rm -rf $(VENV) $(OLDEST) $(LMMS) $(VLLM) $(APP) $(DIST) $(DOCS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

# the files of tests/vllm_plugin/site let a torchvision that was built for CUDA be imported here
$(VLLM)/.stamp: requirements/vllm.txt pyproject.toml $(wildcard tests/vllm_plugin/site/*)
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check --timeout 120 install -qq --no-deps -r requirements/vllm.txt
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	cp tests/vllm_plugin/site/* $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	@touch $@

$(APP)/.stamp: requirements/app.txt $(STAMPS)/test
	rm -rf $(APP)
	$(PIP) --no-deps --target $(APP) -r requirements/app.txt
	@touch $@

$(DIST)/.stamp: requirements/dist.txt
	@test -x $(DIST)/bin/python || $(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip --disable-pip-version-check install -qq -r requirements/dist.txt
	@touch $@

$(DOCS)/.stamp: requirements/docs.txt
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install -qq -r requirements/docs.txt
	@touch $@

$(LMMS)/.stamp: requirements/base.txt requirements/lmms.txt pyproject.toml
	@test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq $(TORCH)
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq -r requirements/base.txt
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq --no-deps -r requirements/lmms.txt
	$(LMMS)/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@touch $@
