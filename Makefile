# Everything runs in a virtual environment of its own: .venv, or VENV=elsewhere.
#
#   make test             the exact versions of locks/, the same on each machine
#   make test LATEST=1    the newest versions that pyproject.toml allows, in .venv-latest
#   make test OLDEST=1    the oldest versions that pyproject.toml allows, in .venv-oldest, on the oldest Python
#
# Linux's plain `torch` brings gigabytes of CUDA libraries; TORCH=... names another build.
ifdef LATEST
VENV ?= .venv-latest
TORCH ?= torch
else ifdef OLDEST
VENV ?= .venv-oldest
PYTHON ?= python3.11
else
VENV ?= .venv
TORCH ?= -r locks/torch.txt
endif
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CHECK_PYTHON := import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer, as in make PYTHON=python3.11")
# Makes the locks, and finds the oldest versions. It runs from an environment of its own.
UV_VERSION := 0.13.9
UV := .venv-uv/$(UV_VERSION)/bin/uv
CODE := engine plugins export tests
# Other people's packages stay out of the project's environment.
PUBLIC := .venv-public
PUBLIC_PIP := $(PUBLIC)/bin/python -m pip --quiet --disable-pip-version-check

# Each file of locks/ holds what the files before it lack.
LOCKS_demo := demo
LOCKS_recipes := demo recipes
LOCKS_test := demo recipes test
LOCKS_fuzz := demo recipes test fuzz

.PHONY: run recipe test soak mutants fuzz bench public lint check lock recordings clean always

run: $(VENV)/demo.stamp ## the main job: export, certify, serve and stream a trained model
	$(BIN)/runnel demo

recipe: $(VENV)/recipes.stamp recordings ## train, certify, stream and measure: make recipe NAME=long_memory
	$(BIN)/python export/recipes $(or $(NAME),--help)

# Formatting and types are judged by the locked tools alone.
test: $(VENV)/test.stamp recordings $(if $(LATEST)$(OLDEST),,lint) ## everything that must hold, in minutes
	$(BIN)/python -m pytest -n 2 -q

soak: $(VENV)/test.stamp recordings mutants ## the same laws, far longer
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -n 2 -q
	$(BIN)/python -m pytest -q -m soak

mutants: $(VENV)/test.stamp recordings ## each bound and promise taken out of a copy: the tests must notice
	$(BIN)/python -m tests.mutants $(NAME)

fuzz: $(VENV)/fuzz.stamp ## bytes that nobody thought of, until Ctrl-C or FUZZ="-max_total_time=60"
	PYTHONPATH=. $(BIN)/python -m tests.fuzz $(FUZZ)

bench: $(VENV)/test.stamp recordings ## writes tests/bench/RESULTS.md; leave the machine alone meanwhile
	$(BIN)/python -m tests.bench

public: $(PUBLIC)/stamp ## writes tests/public/RESULTS.md: models that others published, from the package index
	OMP_NUM_THREADS=1 $(PUBLIC)/bin/python -m tests.public $(CASES)

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/mypy export/recipes

check: lint ## before a commit: formatter, linter, types, prose and links
	$(BIN)/python -m pytest -q tests/test_prose.py tests/test_docs.py

lock: $(UV) ## writes locks/: the newest versions that pyproject.toml allows, for all Pythons
	sh locks/make.sh $(UV)

recordings: ## real speech for tests, from Debian packages, where apt is there
	sh tests/recordings.sh

$(VENV)/%.stamp: pyproject.toml $(wildcard locks/*.txt) $(if $(OLDEST),$(UV)) $(if $(LATEST),always)
	@echo "installing runnel[$*] into $(VENV); PyTorch is large: this takes a minute or two"
	test -x $(BIN)/python || { $(PYTHON) -c '$(CHECK_PYTHON)' && $(PYTHON) -m venv $(VENV); }
ifdef LATEST
	$(PIP) install --upgrade --upgrade-strategy eager $(TORCH) -e '.[$*]'
else ifdef OLDEST
	$(UV) pip install --quiet --upgrade --python $(BIN)/python --resolution lowest-direct $(TORCH) -e '.[$*]'
else
	$(PIP) install --no-deps --require-hashes $(LOCKS_$*:%=-r locks/%.txt)
	$(PIP) install $(TORCH)
	$(PIP) install --no-deps --no-build-isolation -e .
endif
	$(BIN)/python -m pip check
	touch $@

# torchaudio's compiled part wants the CUDA build of torch; its models do without.
$(PUBLIC)/stamp: pyproject.toml locks/demo.txt locks/torch.txt tests/public/packages.txt
	test -x $(PUBLIC)/bin/python || $(PYTHON) -m venv $(PUBLIC)
	$(PUBLIC_PIP) install --no-deps --require-hashes -r locks/demo.txt
	$(PUBLIC_PIP) install -r locks/torch.txt
	$(PUBLIC_PIP) install --no-deps --no-build-isolation -e .
	$(PUBLIC_PIP) install --no-deps -r tests/public/packages.txt
	rm -f $(PUBLIC)/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

$(UV):
	$(PYTHON) -m venv $(@D:/bin=)
	$(@D)/python -m pip --quiet --disable-pip-version-check install uv==$(UV_VERSION)

clean:
	rm -rf $(VENV) .venv .venv-latest .venv-oldest .venv-uv $(PUBLIC) .recordings demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
