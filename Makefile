PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test lint clean

demo: .venv/installed  ## generated data -> folds -> training -> inference -> ensemble -> score
	$(PY) src/split.py
	$(PY) src/sweep.py configs/sweeps/demo.yaml --jobs 2
	$(PY) src/ensemble.py demo_classifier_tiny demo_patch_head
	$(PY) src/evaluate.py

test: .venv/installed  ## the whole suite, on data it generates
	$(PY) -m pytest

lint: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:  ## throw away what `make demo` wrote
	rm -rf input/demo input/demo_answers.csv output/demo output/demo_* submissions/demo_* submissions/sample_submission*

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt -c constraints.txt
	touch $@
