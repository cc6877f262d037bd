# Everything that is done to this repository, by name. `make` alone lists it.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv-core/bin
EXTRAS := extract,formats,tune,report,dev
SEEDS := 1,2,3,4,5
# MODELS=vbpr,freedom and EPOCHS=5 make a reproduction a quick look.
# For reproduce-amazon: AMAZON_MIRROR=DIR|URL instead of the collection's site; SPLIT_DIR=DIR (one dataset) and STAND_IN=1 where
# data or features cannot be had; TEXT_WEIGHTS=DIR where the text encoder is a local copy.
DATASETS := office,toys,beauty,sports,clothing
PROTOCOL := best
TEXT_ENCODER := sentence-transformers/stsb-roberta-large
DATA := data
RUNS := runs
REPORT := report
comma := ,
AMAZON = $(subst $(comma), ,$(DATASETS))
QUESTIONS := fusion,missing,extractors,ids-or-content,does-content-matter
PAGES := questions
ask = $(foreach name,$(subst $(comma), ,$(QUESTIONS)),$(BIN)/mmbench ask recipes/questions/$(name).yaml --data $(DATA)/$(1) \
	--out $(PAGES)/$(name)-$(notdir $(1)).md --runs $(RUNS)/questions $(if $(SEED),--seeds $(SEED)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(JOBS),--jobs $(JOBS)) &&) true
cold = test -e $(DATA)/$(1)/splits/cold || $(BIN)/mmbench data split $(DATA)/$(1) --method cold-items --test 0.1 --valid 0.1 --name cold
given = test -e $(DATA)/$(1) || $(BIN)/mmbench data import "$(2)"/train.tsv "$(2)"/validation.tsv "$(2)"/test.tsv $(3) --out $(DATA)/$(1) && \
	mkdir -p $(DATA)/$(1)/splits/given && cp "$(2)"/train.tsv "$(2)"/test.tsv $(DATA)/$(1)/splits/given/ && \
	cp "$(2)"/validation.tsv $(DATA)/$(1)/splits/given/valid.tsv
import = $(BIN)/mmx store import --format npy
CHOICES = $(if $(SEED),--seed $(SEED)) $(if $(MODELS),--models $(MODELS)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(JOBS),--jobs $(JOBS))
hint = echo "make $@: $(1)" >&2

.PHONY: help setup demo reproduce-amazon reproduce-tiktok reproduce-lastfm questions questions-lastfm questions-tiktok test test-all check format man bench bench-gpu bench-scale wheel-test docs docs-serve clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/installed  ## create .venv and install everything into it

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say which: make PYTHON=python3.12 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	@echo 'Installing both tools with all extras (torch, transformers and so on) into .venv, once: on Linux about 3 GB to download'
	@echo 'and 6 GB on disk (torch brings CUDA), elsewhere about half; some minutes, by the network. Nothing outside this folder changes.'
	@df -h . | awk 'NR == 2 {print "Free here: " $$4}'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
	@echo "Installed: $$(du -sh .venv | cut -f1) in .venv"

demo: setup  ## the main job, end to end, on the embedded catalogue
	@echo 'The demo takes about three minutes on two cores and no network: a synthetic catalogue of 800 items in data/demo,'
	@echo 'its visual, textual and audio features, then six models, four of them with five seeds each, into runs.'
	@test -e data/demo || $(BIN)/mmx demo --out data/demo
	@# Exit code 3 says that some items failed: the catalogue has a corrupt file of each kind on purpose.
	$(BIN)/mmx extract recipes/extract/demo.yaml || test $$? -eq 3
	$(BIN)/mmbench train --data data/demo --protocol paper --model most-popular,item-knn,bpr-mf,content-knn,vbpr,freedom --seed $(SEEDS) \
		--features visual=colour-hog --features textual=tfidf-lsa --features audio=mfcc \
		--scaling l2 --set epochs=150 --set lr=0.01 --set reg_weight=0.1 --set freedom.lr=0.005 --set freedom.reg_weight=0.001
	@printf '%s\n' '' 'What next, after `source .venv/bin/activate`:' \
		'  mmbench compare runs --only protocol=paper         which of these differences are resolved' \
		'  mmbench report runs                                tables and plots of these runs, in report' \
		'  mmx extract --data DIR --modality visual --model resnet50   features of a catalogue of your own (docs/tutorials/catalogue.md)'

reproduce-amazon: setup  ## the study of arXiv 2309.05273: DATASETS=office MODELS=vbpr,freedom PROTOCOL=best|grid EPOCHS=5
	@$(if $(or $(SPLIT_DIR),$(STAND_IN)),:,set -e; for name in $(AMAZON); do \
		$(BIN)/mmx fetch amazon-2014/$$name --out $(DATA)/amazon-$$name $(if $(AMAZON_MIRROR),--mirror $(AMAZON_MIRROR)) || \
			{ $(call hint,AMAZON_MIRROR=DIR|URL takes the files from elsewhere (--mirror); DATASETS=$$name SPLIT_DIR=DIR STAND_IN=1 needs none of them); exit 1; }; \
		$(BIN)/mmx extract --modality textual --model $(TEXT_ENCODER) --name stsb-roberta-large --text-template lattice \
			--data $(DATA)/amazon-$$name $(if $(TEXT_WEIGHTS),--weights $(TEXT_WEIGHTS)) || test $$? -eq 3 || \
			{ $(call hint,TEXT_WEIGHTS=DIR takes a local copy of the text encoder (--weights); TEXT_ENCODER=NAME takes another one (--model)); exit 1; }; \
	done)
	$(BIN)/mmbench reproduce $(AMAZON:%=recipes/amazon/%.yaml) --protocol $(PROTOCOL) $(CHOICES) --data-root $(DATA) \
		$(if $(SPLIT_DIR),--split-dir $(SPLIT_DIR)) $(if $(STAND_IN),--stand-in) --out $(RUNS)/amazon --report $(REPORT)/amazon

reproduce-tiktok: setup  ## all models on TikTok, three seeds: TIKTOK=FOLDER with train, validation, test and *_feat.npy
	@test -n "$(TIKTOK)" || { echo 'error: say where the data is: make reproduce-tiktok TIKTOK=FOLDER (docs/reproducing.md)' >&2; exit 2; }
	@mkdir -p $(DATA)/tiktok && cp "$(TIKTOK)"/train.tsv "$(TIKTOK)"/validation.tsv "$(TIKTOK)"/test.tsv $(DATA)/tiktok/
	$(BIN)/mmx store import --format npy --modality visual --name tiktok-image "$(TIKTOK)"/image_feat.npy --data $(DATA)/tiktok
	$(BIN)/mmx store import --format npy --modality audio --name tiktok-audio "$(TIKTOK)"/audio_feat.npy --data $(DATA)/tiktok
	$(BIN)/mmbench reproduce recipes/tiktok.yaml --protocol grid $(if $(SEED),,--seed 123,124,125) $(CHOICES) \
		--data-root $(DATA) --out $(RUNS)/tiktok --report $(REPORT)/tiktok

reproduce-lastfm: setup  ## all models on Last.fm, three seeds: LASTFM=FOLDER with train, validation, test, items and vectors
	@test -n "$(LASTFM)" || { echo 'error: say where the data is: make reproduce-lastfm LASTFM=FOLDER (docs/reproducing.md)' >&2; exit 2; }
	$(call given,lastfm,$(LASTFM),"$(LASTFM)"/items.tsv)
	@set -e; for set in textual/all-MiniLM-L6-v2 audio/vggish; do $(import) --modality $${set%/*} --name $${set#*/} \
		"$(LASTFM)"/$${set#*/}.npy --ids "$(LASTFM)"/ids.txt --out $(DATA)/lastfm/features; done
	$(BIN)/mmbench reproduce recipes/lastfm.yaml --protocol grid $(if $(SEED),,--seed 1,2,3) $(CHOICES) \
		--data-root $(DATA) --out $(RUNS)/lastfm --report $(REPORT)/lastfm

questions: setup  ## answer recipes/questions on the demo: QUESTIONS=fusion,missing JOBS=2 EPOCHS=5; LASTFM=FOLDER, TIKTOK=FOLDER: on these, too
	@echo 'Five questions, about 300 small trainings on the demo; finished runs are read, not repeated. Pages go into $(PAGES).'
	@test -e $(DATA)/questions/demo || $(BIN)/mmx demo --out $(DATA)/questions/demo
	@test -e $(DATA)/questions/demo-near || $(BIN)/mmx demo --out $(DATA)/questions/demo-near --seed 8 --space 7
	@set -e; for name in demo demo-near; do for set in visual/colour-hog textual/tfidf-lsa audio/mfcc; do \
		$(BIN)/mmx extract --data $(DATA)/questions/$$name --modality $${set%/*} --model $${set#*/} || test $$? -eq 3; done; done
	$(BIN)/mmx extract --data $(DATA)/questions/demo --modality visual --model resnet18 --weights random --name resnet18-untrained || test $$? -eq 3
	$(call cold,questions/demo)
	$(call ask,questions/demo)
	@$(if $(LASTFM),$(MAKE) questions-lastfm)
	@$(if $(TIKTOK),$(MAKE) questions-tiktok)

questions-lastfm: setup
	@test -n "$(LASTFM)" || { echo 'error: say where the data is: make questions-lastfm LASTFM=FOLDER (docs/questions/README.md)' >&2; exit 2; }
	$(call given,questions/lastfm,$(LASTFM),"$(LASTFM)"/items.tsv)
	@set -e; for set in textual/all-MiniLM-L6-v2 audio/vggish audio/whisper; do $(import) --modality $${set%/*} --name $${set#*/} \
		"$(LASTFM)"/$${set#*/}.npy --ids "$(LASTFM)"/ids.txt --out $(DATA)/questions/lastfm/features; done
	$(call cold,questions/lastfm)
	$(call ask,questions/lastfm)

questions-tiktok: setup
	@test -n "$(TIKTOK)" || { echo 'error: say where the data is: make questions-tiktok TIKTOK=FOLDER (docs/questions/README.md)' >&2; exit 2; }
	$(call given,questions/tiktok,$(TIKTOK))
	$(import) --modality visual --name tiktok-image "$(TIKTOK)"/image_feat.npy --data $(DATA)/questions/tiktok
	$(import) --modality audio --name tiktok-audio "$(TIKTOK)"/audio_feat.npy --data $(DATA)/questions/tiktok
	$(call cold,questions/tiktok)
	$(call ask,questions/tiktok)

test: setup  ## the whole default suite
	$(BIN)/python -m pytest -n auto

test-all: setup  ## the slow tests too
	$(BIN)/python -m pytest -n auto -m 'not gpu'

check: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite files in the common format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: setup  ## manual pages of both tools: MANPATH=$$PWD/man: man mmx-extract
	$(BIN)/python -m mmbase.manual mmx.cli:cli mmbench.cli:cli --out man

bench: setup  ## measure what performance claims rest on
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(or $(ARGS),tests/benchmarks) -m 'not gpu' -p no:xdist --benchmark-enable \
		--benchmark-columns=min,median,max,rounds --benchmark-sort=name -s

bench-gpu: setup  ## what training and extraction cost on a GPU: six minutes at most; ARGS='--only training --models freedom'
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.gpu --out $(REPORT)/bench-gpu.json $(ARGS)

bench-scale: setup  ## how training, ranking and memory grow: ARGS='--users 10000,100000,1000000 --models vbpr,bm3'
	$(BIN)/python -m tests.benchmarks.scale --out $(REPORT)/scale $(ARGS)

wheel-test:  ## the built wheel, core dependencies only, in an environment of its own
	rm -rf dist .venv-core
	$(PYTHON) -m venv .venv-core
	$(CORE)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(CORE)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl pytest pytest-benchmark pytest-xdist hypothesis
	$(CORE)/python -c 'import importlib.util as u, sys; found = [m for m in ("torchvision", "torchaudio", "transformers", "open_clip", "sklearn") if u.find_spec(m)]; sys.exit(f"not a core environment: {found}" if found else 0)'
	$(CORE)/python -m pytest -n auto tests/mmstore tests/mmbase tests/mmbench tests/e2e

docs: setup  ## the documentation site, into site/: opens from the file, asks no other host
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

docs-serve: setup  ## the same at http://127.0.0.1:8000, made anew as you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --config-file docs/site/mkdocs.yml

clean:  ## remove what the other targets made, but not data and runs
	rm -rf .venv .venv-core dist man site .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
