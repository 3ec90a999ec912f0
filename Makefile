# The two commands of the README. Each makes its own virtual environment, so neither touches the Python that you have.
PYTHON ?= python3
VENV ?= .venv
FAISS ?= cpu
RUN ?= demo

.PHONY: demo test tests-of-the-science tests-of-parts tests-of-the-whole lint env test-env pictures clean

demo: env  ## render a crawl with planted noise, purify it, print the score and where the audit page is
	$(VENV)/bin/purify demo $(RUN)

test: test-env  ## every check of the project, two at a time, the longest first
	$(MAKE) --no-print-directory --jobs=2 --output-sync=line tests-of-parts tests-of-the-whole tests-of-the-science lint

tests-of-the-science: test-env
	$(VENV)/bin/python -m pytest tests/arcface_core

tests-of-parts: test-env
	$(VENV)/bin/python -m pytest tests/pipeline

tests-of-the-whole: test-env
	$(VENV)/bin/python -m pytest tests --ignore tests/arcface_core --ignore tests/pipeline

lint: test-env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

env: $(VENV)/.installed
test-env: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(FAISS)]"
	touch $@

$(VENV)/.installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(FAISS),dev]"
	touch $@ $(VENV)/.installed

pictures: test-env  ## the demo, and the pictures of the docs from it; needs Chromium
	$(VENV)/bin/purify demo $(RUN)
	$(VENV)/bin/python docs/pictures.py $(RUN)/run

clean:
	rm -rf $(VENV) build *.egg-info
