# From a bare clone, with Python 3.11 or newer and make: `make demo`, `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?= --quiet --disable-pip-version-check
DEMO_DIR ?= build/demo

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# PyTorch and transformers stay out of the environment of everything else.
REFERENCE := .venv-reference

# Nor does the TPU's compiler load beside TensorFlow.
TPU := .venv-tpu

.PHONY: demo test test-slow test-reference test-browser test-native serving-host tpu-check lint format clean

demo: $(INSTALLED)
	$(VENV_PYTHON) -m tools.demo --dir $(DEMO_DIR)

# Most of a test is tracing, on one core: a process for each of two.
test: $(INSTALLED)
	$(VENV_PYTHON) -m pytest --numprocesses 2 --dist loadfile

test-slow: $(INSTALLED)
	$(VENV_PYTHON) -m pytest -m "slow or network"

test-reference: $(REFERENCE)/.installed
	$(REFERENCE)/bin/python -m pytest -m reference -s

# In Debian's Chromium: apt-get install chromium chromium-driver
test-browser: $(INSTALLED)
	$(VENV_PYTHON) -m pytest -m browser

tpu-check: $(INSTALLED) $(TPU)/.installed
	$(VENV_PYTHON) -m pytest -m tpu -s

serving-host: $(INSTALLED)
	@$(MAKE) --no-print-directory -f tools/serving_host/Makefile PYTHON=$(VENV_PYTHON) OUTPUT=build/serving_host

test-native: $(INSTALLED)
	$(VENV_PYTHON) -m pytest -m native

lint: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

format: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

clean:
	rm -rf $(VENV) $(REFERENCE) $(TPU) build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt requirements-beam.txt requirements-serving.txt requirements-fused.txt requirements-dev.txt constraints.txt
	$(call make_venv,$(VENV),requirements-dev.txt)

$(REFERENCE)/.installed: requirements.txt requirements-beam.txt requirements-serving.txt requirements-fused.txt requirements-dev.txt requirements-reference.txt constraints.txt
	$(call make_venv,$(REFERENCE),requirements-reference.txt)

$(TPU)/.installed: requirements-tpu-check.txt constraints.txt
	$(call make_venv,$(TPU),requirements-tpu-check.txt)

define make_venv
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install $(PIP_FLAGS) -r $(2) -c constraints.txt
	@touch $(1)/.installed
endef
