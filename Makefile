# make: everything, from an empty checkout to the report. make test: all tests. make test-fast: those of a minute.
PYTHON ?= python3
DATA_SOURCE ?= bundled
PRESET ?= quick
SEEDS ?= 0 1 2 3 4
# The share of rehearsed text of the baseline with rehearsal, as K-1 has it.
REHEARSAL ?= 0.25
# --compile, for longer trainings (k1/training/README.md).
COMPILE ?=
# One thread a training and two trainings at a time: as fast as the other way round, and no figure depends on the cores.
SETTINGS = --data_source $(DATA_SOURCE) --preset $(PRESET) --threads 1 $(COMPILE)
MAKEFLAGS += --jobs=2
RUN = .venv/bin/python
# $(call train,SCRIPT FLAGS) names a training and does it. The script resumes one that was stopped, keeps what it finds
# trained with these settings and text, and replaces what was trained with others.
train = @echo '$(strip $(1))' >&2; $(RUN) $(1) $(SETTINGS) --overwrite && touch $@

.PHONY: all report seeds unseen unseen2 pretrained study map stream model-study model-costs benchmark record
.PHONY: test test-fast test-oldest lint numerics kills clean FORCE
.SECONDARY:
.DELETE_ON_ERROR:

# The longest chain of trainings first, or its end runs alone.
all: models/baseline_rehearsal_final.pt k1_output.txt models/sparse_final.pt baseline_output.txt
	@$(RUN) -m k1.report --html models/report.html

report: .venv/.installed
	@$(RUN) -m k1.report --html models/report.html

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: Python 3.11 or newer is needed; name one: make PYTHON=python3.11' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# What the tests and the study need besides.
.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Changes only when the settings do, so that make DATA_SOURCE=hub trains again.
models/.settings: FORCE
	@mkdir -p models
	@if [ ! -e $@ ] && ls models/*.pt > /dev/null 2>&1; then \
		echo 'error: models/ holds checkpoints that make did not train; move them away, or make clean' >&2; exit 1; fi
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@

models/k1_dataset1.pt: train_k1_dataset1.py models/.settings | .venv/.installed
	$(call train,$<)

models/k1_dataset2.pt: train_k1_dataset2.py models/k1_dataset1.pt
	$(call train,$<)

models/k1_final.pt: train_k1_dataset3.py models/k1_dataset2.pt
	$(call train,$<)

# 51% alone: the later stages of K-1 without rehearsal.
models/sparse_dataset2.pt: train_k1_dataset2.py models/k1_dataset1.pt
	$(call train,$< --rehearsal 0)

models/sparse_final.pt: train_k1_dataset3.py models/sparse_dataset2.pt
	$(call train,$< --rehearsal 0)

models/baseline_final.pt: train_baseline_all.py models/.settings | .venv/.installed
	$(call train,$<)

models/baseline_rehearsal_final.pt: train_baseline_all.py models/baseline_final.pt
	$(call train,$< --rehearsal $(REHEARSAL))

k1_output.txt: generate_k1.py k1/report/generation.py models/k1_final.pt
	$(RUN) $< > $@

baseline_output.txt: generate_baseline.py k1/report/generation.py models/baseline_final.pt
	$(RUN) $< > $@

# The experiment at several seeds; stopped and started again, it resumes the training that was not finished.
seeds: $(SEEDS:%=models/seed%/report.json)
	@$(RUN) -m k1.study.seeds $^

models/seed%: FIRST = --seed $(*:seed%=%)
models/seed%: ALL = $(FIRST)

# An experiment in a folder of its own; FIRST, SECOND, THIRD and ALL are the flags that make it another one.
models/%/k1_dataset1.pt: | .venv/.installed
	$(call train,train_k1_dataset1.py $(FIRST) --models_dir $(@D))

models/%/k1_dataset2.pt: models/%/k1_dataset1.pt
	$(call train,train_k1_dataset2.py $(SECOND) --models_dir $(@D))

models/%/k1_final.pt: models/%/k1_dataset2.pt
	$(call train,train_k1_dataset3.py $(THIRD) --models_dir $(@D))

models/%/sparse_dataset2.pt: models/%/k1_dataset1.pt
	$(call train,train_k1_dataset2.py $(SECOND) --models_dir $(@D) --rehearsal 0)

models/%/sparse_final.pt: models/%/sparse_dataset2.pt
	$(call train,train_k1_dataset3.py $(THIRD) --models_dir $(@D) --rehearsal 0)

models/%/baseline_final.pt: | .venv/.installed
	$(call train,train_baseline_all.py $(ALL) --models_dir $(@D))

models/%/baseline_rehearsal_final.pt: models/%/baseline_final.pt
	$(call train,train_baseline_all.py $(ALL) --models_dir $(@D) --rehearsal $(REHEARSAL))

models/%/report.json: models/%/baseline_rehearsal_final.pt models/%/k1_final.pt models/%/sparse_final.pt
	$(RUN) -m k1.report --models_dir $(@D) --json $@ > $(@D)/report.md

# The experiment on three local text files that no setting was tuned on, and on three others.
UNSEEN = $(patsubst %,models/unseen/%.jsonl,source licences documentation)
UNSEEN2 = $(patsubst %,models/unseen2/%.jsonl,stubs headers guides)
unseen unseen2: %: models/%/report.json
	@cat models/$@/report.md

# The licences are those of all installed packages, so that the text depends on which are. One recipe makes three
# files, which make of before 4.3, as macOS has it, knows of patterns alone.
models/%/source.jsonl models/%/licences.jsonl models/%/documentation.jsonl: | .venv/.installed-dev
	$(RUN) -m k1.study.unseen $(@D)

models/%/stubs.jsonl models/%/headers.jsonl models/%/guides.jsonl: | .venv/.installed-dev
	$(RUN) -m k1.study.unseen $(@D) --second

models/unseen/k1_dataset1.pt models/unseen/baseline_final.pt: $(UNSEEN)
models/unseen2/k1_dataset1.pt models/unseen2/baseline_final.pt: $(UNSEEN2)
models/unseen/%: TEXTS = $(UNSEEN)
models/unseen2/%: TEXTS = $(UNSEEN2)
models/unseen/% models/unseen2/%: FIRST = --dataset_name $(word 1,$(TEXTS))
models/unseen/% models/unseen2/%: SECOND = --dataset_name $(word 2,$(TEXTS))
models/unseen/% models/unseen2/%: THIRD = --dataset_name $(word 3,$(TEXTS))
models/unseen/% models/unseen2/%: ALL = --dataset_names $(TEXTS)

# The experiment on top of a model that knows dataset 1 already: the baseline's first one, exported as any other is.
LATER_STEPS ?= 600
pretrained: models/pretrained/report.json
	@cat models/pretrained/report.md

models/pretrained/start: models/baseline_final.pt
	@mkdir -p $(@D) && rm -rf $@
	$(RUN) -m k1.export models/baseline_dataset1.pt $@

models/pretrained/k1_dataset1.pt models/pretrained/baseline_final.pt: models/pretrained/start
models/pretrained/%: FIRST = --init_from models/pretrained/start --max_steps 0
models/pretrained/%: SECOND = --max_steps $(LATER_STEPS)
models/pretrained/%: THIRD = $(SECOND)
models/pretrained/%: ALL = $(FIRST) $(LATER_STEPS) $(LATER_STEPS)

# All methods over learning rates and seeds, at preset study; stopped and started again, it resumes.
study: .venv/.installed-dev
	$(RUN) -m k1.study

# Shares of updated parameters, shares of rehearsal and policies, at preset study.
map: .venv/.installed-dev
	$(RUN) -m k1.study --grid map

# Six datasets, the three of unseen among them, learned one after another; resumes where it was stopped.
stream: $(UNSEEN) .venv/.installed-dev
	$(RUN) -m k1.study --grid stream --dataset_names wikitext code science $(UNSEEN)

# Time and memory beside other ways to train, on an otherwise idle machine.
benchmark: .venv/.installed-dev
	@mkdir -p models
	$(RUN) -m k1.benchmark --json models/benchmark.json > models/.benchmark.md
	@mv models/.benchmark.md models/benchmark.md && cat models/benchmark.md

# What keeps a real pretrained model from forgetting; MODEL is a folder or a name on the hub. Resumes where it stopped.
STEPS ?= 60
TASKS ?= 1
model-study: .venv/.installed-dev
	$(RUN) -m k1.study.pretrained $(MODEL) --steps $(STEPS) --tasks $(TASKS) \
		--out models/model_study$(STEPS)$(if $(filter 2,$(TASKS)),_two_tasks)

# Time and memory of the arms, in turns and each run in a process of its own; on an otherwise idle machine.
model-costs: .venv/.installed-dev
	@for seed in 0 1 2; do for arm in full sparse lora rehearsal rehearsal_half k1 k1_lora; do \
		$(RUN) -m k1.study.pretrained $(MODEL) --steps 20 --adapt_steps 1 --evaluated 8 --seeds $$seed --arms $$arm \
			--learning_rates 1e-5 --out models/model_costs > /dev/null || exit 1; done; done
	@cat models/model_costs/costs.md

# What the pages show, from make, make seeds and all other commands that train; a test compares them with results/.
# Of what was not run here the record stays as it is; paths in it are those from here.
RECORDED = $(foreach seed,$(SEEDS),seed$(seed)/report.json:seed$(seed).json) \
	$(foreach end,json md,benchmark.$(end):benchmark.$(end)) \
	$(foreach steps,6 60 240,$(foreach end,results.json results.md frontier.png, \
		model_study$(steps)/$(end):pretrained$(steps)$(suffix $(end)))) \
	model_study60/equal.md:equal.md model_study60_two_tasks/continuations.md:continuations.md model_costs/costs.md:costs.md \
	$(foreach end,json md,model_study60_two_tasks/results.$(end):two_tasks.$(end)) \
	$(foreach name,unseen unseen2 pretrained,$(name)/report.json:$(name).json $(name)/report.md:$(name).md) \
	$(foreach name,study stream map,$(name)/results.json:$(name).json $(name)/results.md:$(name).md) \
	study/frontier.png:study.png stream/accuracy.png:stream.png map/frontier.png:map.png
record: .venv/.installed
	$(RUN) -m k1.report --json results/report.json --plots results > results/report.md
	@for pair in $(RECORDED); do from=models/$${pair%:*}; to=results/$${pair#*:}; [ ! -e $$from ] || case $$to in \
		*.png) cp $$from $$to;; *) sed 's|$(CURDIR)/||g' $$from > $$to;; esac || exit 1; done
	$(RUN) -m k1.study.seeds results/seed*.json > results/seeds.md
	$(RUN) -m k1.study.readme

test: .venv/.installed-dev
	$(RUN) -m pytest --numprocesses 2 --dist loadgroup

test-fast: .venv/.installed-dev
	$(RUN) -m pytest --numprocesses 2 --dist loadgroup -m 'not slow'

# Style, formatting and types, as pyproject.toml has them.
lint: .venv/.installed-dev
	$(RUN) -m ruff check k1 tests *.py
	$(RUN) -m ruff format --check k1 tests *.py
	$(RUN) -m mypy

# The numeric tests as other processors run them: with AVX2 and without vector instructions.
numerics: .venv/.installed-dev
	@for kind in avx2 default; do ATEN_CPU_CAPABILITY=$$kind $(RUN) -m pytest --numprocesses 2 --dist loadgroup \
		tests/test_sparse.py tests/test_rehearsal.py tests/training/test_library.py || exit 1; done

# The library with the oldest versions that pyproject.toml allows, torch excepted: of it there are only wheels with CUDA.
test-oldest: .venv/.installed-oldest
	PYTHONPATH=.venv/oldest $(RUN) -m pytest --numprocesses 2 --dist loadgroup tests/training/test_library.py \
		$(patsubst %,tests/test_%.py,sparse rehearsal callback known architectures)

.venv/.installed-oldest: tests/requirements-oldest.txt .venv/.installed-dev
	rm -rf .venv/oldest
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/oldest -r $<
	touch $@

# What is too slow for the tests: 100 kills, of all training scripts.
kills: .venv/.installed-dev
	KILLS=100 $(RUN) -m pytest tests/training/test_kills.py

clean:
	rm -rf models/*.pt models/report.html models/runs models/.settings models/.*.lock k1_output.txt baseline_output.txt

FORCE:
