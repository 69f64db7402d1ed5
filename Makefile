# make: everything, from an empty checkout to the report. make test: all tests.
PYTHON ?= python3
DATA_SOURCE ?= bundled
PRESET ?= quick
SETTINGS = --data_source $(DATA_SOURCE) --preset $(PRESET)
RUN = .venv/bin/python

.PHONY: all report test sweep clean FORCE
.DELETE_ON_ERROR:

all: k1_output.txt baseline_output.txt report

report: models/k1_final.pt models/baseline_final.pt
	$(RUN) -m k1.report

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: Python 3.11 or newer is needed; name one: make PYTHON=python3.11' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Changes only when the settings do, so that make DATA_SOURCE=hub trains again.
models/.settings: FORCE
	@mkdir -p models
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@

models/k1_dataset1.pt: train_k1_dataset1.py models/.settings | .venv/.installed
	$(RUN) $< $(SETTINGS) --overwrite

models/k1_dataset2.pt: train_k1_dataset2.py models/k1_dataset1.pt
	$(RUN) $< $(SETTINGS) --overwrite

models/k1_final.pt: train_k1_dataset3.py models/k1_dataset2.pt
	$(RUN) $< $(SETTINGS) --overwrite

# Trained after K-1, also under make -j: two trainings at once slow each other down.
models/baseline_final.pt: train_baseline_all.py models/.settings | .venv/.installed models/k1_final.pt
	$(RUN) $< $(SETTINGS) --overwrite

k1_output.txt: generate_k1.py models/k1_final.pt
	$(RUN) $< > $@

baseline_output.txt: generate_baseline.py models/baseline_final.pt
	$(RUN) $< > $@

# Several hours: every learning rate of the README's table, recorded in results/sweep as it goes.
sweep: .venv/.installed
	$(RUN) -m k1.study --out results/sweep

test: .venv/.installed
	$(RUN) -m pytest

clean:
	rm -f models/*.pt models/.settings k1_output.txt baseline_output.txt

FORCE:
