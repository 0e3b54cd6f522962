# Everything runs in a virtual environment of its own: .venv, or VENV=elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A plain `torch` would bring gigabytes of CUDA libraries. The library itself takes any recent version.
TORCH := torch==2.13.0
CODE := engine plugins export tests

.PHONY: run recipe test soak fuzz bench lint recordings clean

run: $(VENV)/demo.stamp ## the main job: export, certify, serve and stream a trained model
	$(BIN)/runnel demo

recipe: $(VENV)/recipes.stamp recordings ## train, certify, stream and measure: make recipe NAME=long_memory
	$(BIN)/python export/recipes $(or $(NAME),--help)

test: $(VENV)/test.stamp recordings lint ## everything that must hold, in minutes
	$(BIN)/python -m pytest -n 2 -q

soak: $(VENV)/test.stamp recordings ## the same laws, far longer
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -n 2 -q
	$(BIN)/python -m pytest -q -m soak

fuzz: $(VENV)/fuzz.stamp ## bytes that nobody thought of, until Ctrl-C or FUZZ="-max_total_time=60"
	PYTHONPATH=. $(BIN)/python -m tests.fuzz $(FUZZ)

bench: $(VENV)/test.stamp recordings ## writes tests/bench/RESULTS.md; leave the machine alone meanwhile
	$(BIN)/python -m tests.bench

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/mypy export/recipes

recordings: ## real speech for tests, from Debian packages, where apt is there
	sh tests/recordings.sh

$(VENV)/%.stamp: pyproject.toml
	@echo "installing runnel[$*] into $(VENV); PyTorch is large: this takes a minute or two"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) .recordings demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
