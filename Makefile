# planc: every target makes the .venv that it needs. `make demo ARGS="--workers 8"` passes arguments on.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
PEERS  := .venv-peers
NEEDS_flower := flwr[simulation]
NEEDS_pfl    := pfl

.DEFAULT_GOAL := help
.PHONY: help demo hospital test lint bench bench-peers zoo clean

help:
	@echo "make demo     federated training on real MNIST images, with a report (ARGS=... for planc demo)"
	@echo "make hospital two data owners and a scientist, as processes over mutual TLS: examples/hospital"
	@echo "make test     the tests (ARGS=... for pytest)"
	@echo "make lint     ruff and basedpyright"
	@echo "make bench    the benchmarks (ARGS="steps --quick", ...)"
	@echo "make bench-peers  rounds beside Flower and pfl, each in its own environment in .venv-peers"
	@echo "make zoo      whole networks as plans, compared with PyTorch: docs/zoo.md (an hour; ARGS=resnet18 for one)"
	@echo "make clean    remove everything that these made, .venv too"

# Installed once, and again when a dependency changes. The install is editable: code needs no new one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "planc needs Python 3.11 or newer, this is " + sys.version)'
	@echo "[1/2] making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/2] installing planc and its dependencies (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo,network,ray,tensorboard,test,dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/planc demo $(ARGS)

hospital: $(STAMP)
	@$(BIN)/python examples/hospital/run.py $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(ARGS)

# Each tool has an environment of its own: they do not agree on versions. torch and numpy are ours.
$(PEERS)/%/.installed: constraints.txt
	@echo "making $(PEERS)/$*"
	@$(PYTHON) -m venv $(PEERS)/$*
	@grep -E '^(torch|numpy)==' constraints.txt > $(PEERS)/$*/constraints.txt
	@$(PEERS)/$*/bin/python -m pip install -qq -c $(PEERS)/$*/constraints.txt torch numpy '$(NEEDS_$*)'
	@touch $@

bench-peers: $(STAMP) $(PEERS)/flower/.installed $(PEERS)/pfl/.installed
	@$(BIN)/python -m benchmarks rounds --peers $(ARGS)

zoo: $(STAMP)
	@$(BIN)/python -m benchmarks.zoo $(ARGS)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find planc runtime tests -name __pycache__ -type d -prune -exec rm -rf {} +
