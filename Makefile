.PHONY: demo table bench test test-slow fuzz lint check clean setup
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

demo: setup ## fetch a trained model and text, run the whole pipeline, print the table
	neuronrank check
	dvc repro
	cat artifacts/report/table.md

table: setup ## every method from one artifact: docs/RESULTS.md
	dvc repro prepare
	neuronrank table --results docs/results.json --document docs/RESULTS.md

bench: setup ## what collect, score, prune and eval cost beside the bare work: docs/SPEED.md
	dvc repro collect
	python -m benchmarks run --results docs/speed.json --document docs/SPEED.md \
	  $(if $(LLM_COMPRESSOR_PYTHON),--llm-compressor-python $(LLM_COMPRESSOR_PYTHON))

test: setup ## unit and end-to-end tests, a process for each processor
	OMP_NUM_THREADS=1 pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.zeroshot ## tests on the trained model, zero-shot tasks too; fetches it when absent
	dvc repro collect
	pytest -m slow

fuzz: setup ## the readers on many damaged inputs: an hour
	NEURONRANK_FUZZ=200 OMP_NUM_THREADS=1 pytest tests/test_fuzzing.py tests/test_fuzzing_models.py --numprocesses auto

lint: setup ## format, lint and types
	ruff format --check .
	ruff check .
	mypy

check: lint test ## all that must hold before a commit

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

$(VENV)/.zeroshot: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[zeroshot]"
	touch $@

clean: ## remove the environment and caches; artifacts stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
