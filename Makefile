# make search: set up, search a cell by RARTS on handwritten digits, train the network, show it.
# make test:   set up, run the tests.
PYTHON ?= python3
RUN := results/make-search
BIN := .venv/bin

search: $(RUN)/final/network.safetensors
	$(BIN)/nasengine show $(RUN)/final

$(RUN)/final/network.safetensors: $(RUN)/architecture.txt
	OMP_NUM_THREADS=1 $(BIN)/nasengine train $(RUN) --epochs 30 --set space.channels=8 --set space.layers=4 --set train.drop_path=0 $(if $(wildcard $(RUN)/final/run.json),--resume)

$(RUN)/architecture.txt: | .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/nasengine search --space darts --algo rarts --data digits --epochs 8 --set space.channels=8 --set space.layers=3 \
	    --set algo.alphas.lr=0.01 --out $(RUN) $(if $(wildcard $(RUN)/run.json),--resume)

test: .venv/installed-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: .venv/installed-dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/installed-tests: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

.venv/installed-dev: .venv/installed-tests
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv $(RUN)

.PHONY: search test lint clean

# Written when a run ends; what an interrupted one left is gone on with.
.PRECIOUS: $(RUN)/architecture.txt $(RUN)/final/network.safetensors
