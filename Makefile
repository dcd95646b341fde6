# Everything from nothing: `make demo`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVICES := .venv-services
# Each needs packages that the others cannot have: Triton's Python backend numpy of 1.x, Ray 300 MB.
TRITON := .venv-triton
RAY := .venv-ray
# Two processes of one thread each: much of a test is Python, and two thread pools on two cores spoil each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

SERVICE_TESTS := TRT_SAM_PYTHON=$(abspath $(BIN)/python) $(SERVICES)/bin/python -m pytest tests/services --confcutdir=tests/services

.PHONY: install demo test test-pythons test-services test-load test-all test-gpu bench-gpu lint types check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/install_gpu_fixtures.sh scripts/install_pycuda.sh $(wildcard tests/fixtures/hostcuda/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,rtx]'
	bash scripts/install_gpu_fixtures.sh $(BIN)/python
	touch $@

demo: install
	$(BIN)/python scripts/demo.py demo

test: install
	$(PYTEST) -m "not slow and not gpu"

# Without torch, on Python 3.10, 3.12 and 3.13: slow.
test-pythons:
	bash scripts/test_pythons.sh

# A real service, a real browser, tritonclient and a fuzzer in an environment of their own; a real Triton, a real cluster of Ray.
test-services: install $(SERVICES)/.installed $(TRITON)/.installed $(RAY)/.installed
	$(SERVICE_TESTS) -m "not slow"

# Fifty users for ten minutes.
test-load: install $(SERVICES)/.installed
	$(SERVICE_TESTS) -m slow

$(SERVICES)/.installed: tests/services/requirements.txt scripts/install_chromium.sh
	sh scripts/install_chromium.sh
	test -x $(SERVICES)/bin/python || $(PYTHON) -m venv $(SERVICES)
	$(SERVICES)/bin/python -m pip install -q --disable-pip-version-check -r tests/services/requirements.txt
	touch $@

$(TRITON)/.installed $(RAY)/.installed: .venv-%/.installed: tests/services/requirements-%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

test-all: install
	$(PYTEST) -m "not gpu"

test-gpu: install
	$(BIN)/python scripts/gpu_tests.py

bench-gpu: install
	$(BIN)/python scripts/gpu_bench.py --output benchmarks/results

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) .venv-3.* $(SERVICES) $(TRITON) $(RAY) build dist demo *.egg-info
