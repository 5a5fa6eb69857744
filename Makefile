# Commands:   make demo       the four-condition experiment, small, on the real simulator, with a report
#             make check      style, types, import rules and the quick tests: before every commit
#             make test       the same, the site, and all tests but those marked nightly: before every push; CI runs it
#             make test-all   the same and all tests: every night and before a release
#             make test-lerobot  LeRobot itself on our data sets and policies, and its own here; installs LeRobot
#             make docs       the documentation as a site, in site/; ends in an error where a link leads nowhere
# Everything is installed into .venv. Options: PYTHON=python3.12, PYTEST="--durations=20", RUN="--seeds 0 1", WORKERS=4
# (processes that run tests; those of one file stay together, so that what they share is made once).

PYTHON ?= python3
VENV   ?= .venv
PRESET ?= quick
WORKERS ?= 2
LEROBOT ?= .venv-lerobot
PYTHON312 ?= python3.12
TRANSFORMERS ?= 5.4.0
BIN    := $(VENV)/bin
GPU    := $(shell command -v nvidia-smi)

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo check test test-all test-lerobot test-transformers rules docs setup same-python

comma := ,
# $(call step,words,command): says what begins, runs it, says how long it took.
step = @echo "==> $(1)"; begun=$$SECONDS; $(2); echo "    done in $$((SECONDS - begun)) s"
pip  = $(BIN)/python -m pip -qq --disable-pip-version-check --no-input install

help:
	@sed -n 's/^# \?//; 1,6p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.sim
	$(call step,checking this machine,$(BIN)/la-reconvla check)
	$(call step,the experiment: preset $(PRESET),$(BIN)/la-reconvla study run --preset $(PRESET) $(RUN))

check test test-all: rules
	$(call step,tests,$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "$(TESTS)" $(PYTEST))

check:    TESTS = not sim and not slow and not nightly
test:     TESTS = not nightly
test-all: TESTS =

test-lerobot: setup $(LEROBOT)/.policy
	$(call step,our data sets in LeRobot and its in ours,$(BIN)/python scripts/check_lerobot.py $(LEROBOT)/bin/python)
	$(call step,our policies in LeRobot and its in ours,$(LEROBOT)/bin/python -m pytest tests/lerobot_plugin $(PYTEST))

# An environment of its own: LeRobot's pins (Python, torch, numpy, huggingface-hub) and ours do not fit together.
$(LEROBOT)/.lerobot:
	$(call step,creating $(LEROBOT) with $(PYTHON312),$(PYTHON312) -m venv $(LEROBOT))
	$(call step,installing LeRobot there,$(LEROBOT)/bin/python -m pip -qq --no-input install "lerobot[training$(comma)peft-dep]==0.6.1")
	@touch $@

$(LEROBOT)/.policy: $(LEROBOT)/.lerobot
	$(call step,installing this package and its plugin there,$(LEROBOT)/bin/python -m pip -qq --no-input install -e '.[sim]' -e plugins/lerobot_policy_la_reconvla pytest pytest-timeout hypothesis)
	@touch $@

# Another transformers than the pinned one, in a folder of its own.
OTHER = $(VENV)/transformers-$(TRANSFORMERS)
test-transformers: setup
	@grep -vE '^(transformers|tokenizers|huggingface-hub)==' constraints.txt > $(VENV)/other.txt
	$(call step,installing transformers $(TRANSFORMERS),$(pip) -c $(VENV)/other.txt --upgrade --target $(OTHER) transformers==$(TRANSFORMERS))
	$(call step,its tests,PYTHONPATH=$(OTHER) $(BIN)/pytest -m "not sim and not slow and not nightly" $(PYTEST) tests/backbones tests/method tests/training)

rules: setup
	$(call step,style,$(BIN)/ruff check; $(BIN)/ruff format --check)
	$(call step,types,$(BIN)/basedpyright)
	$(call step,import rules,$(BIN)/lint-imports)

test test-all: docs

docs: setup
	$(call step,the site of the documentation,NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet)

setup: $(VENV)/.dev

# A stamp file for each set of packages: a second call installs nothing unless the requirements changed.
$(VENV)/.sim: $(VENV)/.torch
	$(call step,installing the package with the simulator,$(pip) -c $(VENV)/constraints.txt -e '.[sim]')
	@touch $@

$(VENV)/.dev: $(VENV)/.torch
	$(call step,installing the package with the simulator and the development tools,$(pip) -c $(VENV)/constraints.txt -e '.[dev]')
	@touch $(VENV)/.sim $@

# A folder that is there keeps its Python: who asks for another is told, instead of getting the old one without a word.
ifneq ($(origin PYTHON),file)
$(VENV)/.torch: | same-python
endif
VERSION = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
same-python:
	@[[ ! -e $(BIN)/python ]] && exit; there=$$($(BIN)/python $(VERSION)); asked=$$($(PYTHON) $(VERSION)); [[ $$there == $$asked ]] \
	|| { echo "$(VENV) holds Python $$there, not $$asked: rm -r $(VENV), or choose another folder, VENV=.venv-$$asked" >&2; exit 1; }

# Without a GPU the pinned torch goes first and alone: where pip knows a CPU build of that version it is taken, the
# range in pyproject.toml is then satisfied, and no gigabytes of CUDA libraries follow. With a GPU the newest torch in
# the range is taken, which brings its own CUDA, so the pin of torch (and of nothing else) is dropped.
$(VENV)/.torch: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(call step,creating $(VENV) with $(PYTHON),$(PYTHON) -m venv $(VENV))
	@$(if $(GPU),grep -v '^torch==',cat) constraints.txt > $(VENV)/constraints.txt
	$(call step,bringing pip up to date,$(pip) -c $(VENV)/constraints.txt --upgrade pip)
	$(if $(GPU),,$(call step,installing torch without a GPU,$(pip) "$$(grep '^torch==' constraints.txt)"))
	@touch $@
