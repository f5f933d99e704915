# Each target makes .venv first if it is missing, unfinished, or older than requirements.txt.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
PROVE := $(VENV_PYTHON) -m pytest -q -rs

.PHONY: help learn test train lint types gates torture sweep bench notebooks docs docs-test docs-ready clean ready

help:
	@echo "make learn   install, and start the course: the map, your next lesson, what to do next"
	@echo "make test    install, and run everything that proves this repository"
	@echo "make train   install, and train a small GPT on real text with the production package"
	@echo "make gates   prove that the lessons' tests are good (part of make test)"
	@echo "make lint    format and lint check; make types: type check (parts of make test)"
	@echo "make torture the fault matrix: what may happen to a checkpoint, done to ours (half an hour)"
	@echo "make sweep   kill training runs again and again, resume them, compare every bit (minutes)"
	@echo "make bench   what training/ costs beside plain torch, how fast course watch answers (minutes, 5 GB of disk)"
	@echo "make notebooks  run every notebook, on the solutions and on the skeletons, and compare with what is committed"
	@echo "make docs    build the site, English and Chinese, into site/ (open site/index.html; needs no network)"
	@echo "make docs-test  build it, check every link, and open every page in a browser (minutes)"
	@echo "make clean   remove .venv, caches and runs; your code and your progress stay"

ready:
	@$(PYTHON) course/bootstrap.py

learn: ready
	@$(VENV_PYTHON) -m course learn

train: ready
	@$(VENV_PYTHON) -m training pretrain --resume auto

lint: ready
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .

types: ready
	$(VENV_PYTHON) -m mypy

gates: ready
	$(VENV_PYTHON) -m course build --check
	$(VENV_PYTHON) -m course gates

ifneq ($(wildcard solutions/.),)
test: lint types gates
	@# Two processes, one for each core: the suites spend their time in single-threaded children.
	@mkdir -p .course; \
	$(PROVE) testcases/training > .course/training.log 2>&1 & training=$$!; \
	trap 'kill $$training' INT TERM; \
	$(PROVE) testcases/course testcases/torture; first=$$?; \
	wait $$training; second=$$?; \
	cat .course/training.log; exit $$((first + second))
else  # a student release: the lessons' tests are proved where the solutions are
test: ready
	$(PROVE) testcases/training
endif

torture: ready
	$(VENV_PYTHON) -m testcases.torture

sweep: ready
	$(VENV_PYTHON) -m testcases.torture resume
	$(VENV_PYTHON) -m testcases.torture cli

bench: ready
	$(VENV_PYTHON) -m benchmarks.overhead --check
	$(VENV_PYTHON) -m benchmarks.checkpoint --check
	$(VENV_PYTHON) -m benchmarks.watch --check

notebooks: ready
	$(VENV_PYTHON) -m course notebooks run
	$(VENV_PYTHON) -m course notebooks check

docs-ready:
	@$(PYTHON) course/bootstrap.py docs

docs: docs-ready
	$(VENV_PYTHON) -m course docs build
	$(VENV_PYTHON) -m course docs check

docs-test: docs-ready
	$(VENV_PYTHON) -m course docs build
	$(VENV_PYTHON) -m course docs chromium
	@# Two processes again: the browser, and everything else.
	@mkdir -p .course; \
	DOCS_SITE=site $(PROVE) testcases/site/browser_test.py > .course/browser.log 2>&1 & browser=$$!; \
	trap 'kill $$browser' INT TERM; \
	DOCS_SITE=site $(PROVE) testcases/site --ignore testcases/site/browser_test.py; first=$$?; \
	wait $$browser; second=$$?; \
	cat .course/browser.log; exit $$((first + second))

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache runs site *.egg-info
