# make help says what there is. Everything sets itself up: .venv is made and filled by the first
# call, and found complete by later ones.

ifeq ($(OS),Windows_NT)
PYTHON_BIN := .venv/Scripts/python
else
PYTHON_BIN := .venv/bin/python
endif

# One process for each of two cores, and one thread in each process. More cores: WORKERS=8.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run test notebooks results bench mutants lint

help:  ## this list
	@echo "make TARGET; the first call also makes .venv (PYTHON=/path/to/python chooses its Python)"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1@\2/p' $(MAKEFILE_LIST) | tr '@' '\t' | expand -t 13

setup:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

run: setup  ## train a tokenizer and a GPT, then talk to it (ARGS=--smoke, ARGS=--help)
	@$(PYTHON_BIN) 10-pretraining-llms/pretrain.py $(ARGS)

test: setup  ## every test, exercise and notebook (WORKERS=2, ARGS="-k attention")
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(PYTHON_BIN) -m pytest \
	    --solutions -n $(WORKERS) --dist worksteal --durations 15 $(ARGS)

notebooks: setup  ## run every notebook and save its outputs (TOPIC=05)
	HF_HUB_OFFLINE=1 $(PYTHON_BIN) scripts/execute_notebooks.py --topic "$(TOPIC)" $(ARGS)

results: setup  ## run the topics' scripts, then renew the numbers in the READMEs (TOPIC=05)
	HF_HUB_OFFLINE=1 $(PYTHON_BIN) scripts/measure.py results --topic "$(TOPIC)" $(ARGS)

bench: setup  ## time us beside what you would use instead (NAME=decoding)
	HF_HUB_OFFLINE=1 $(PYTHON_BIN) scripts/measure.py bench --name "$(NAME)" $(ARGS)

mutants: setup  ## plant each known bug and require that the tests notice (TOPIC=05, NAME=rope)
	$(PYTHON_BIN) tests/run_mutants.py --topic "$(TOPIC)" --name "$(NAME)" -j $(WORKERS) $(ARGS)

lint: setup  ## ruff and pyright
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m ruff format --check .
	$(PYTHON_BIN) -m pyright
