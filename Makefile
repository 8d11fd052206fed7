# make demo     edit Gemma 3 270M with 240 facts        make check    ruff and mypy
# make test     all tests but the slow ones             make bench    this project against a plain baseline
# make quality  published and refined settings on data that they were not tuned on; many hours at full size (SHARED=DIR)
# make bench-7b a random model of 14.5 GB edited in 5 GiB of memory; 15 GB of disk, a quarter of an hour (SCRATCH=DIR)
# make soak     a million edits of a tiny model, killed and resumed; an hour or more
# make docs     the documentation as a site in site/, every link checked; make docs-serve shows it while you write
# make fuzz     other cases than those of make test for the tests that try whatever input they can think of
# make coverage which lines the tests run                make wheel-check  build the wheel and use it without the checkout
PYTHON ?= python3.11
VENV   ?= .venv
# A GPU machine brings its own: make demo TORCH=torch, or VENV=/a/venv/with/torch TORCH=
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.ready-docs

SHARED ?= ../shared/data
# Processes that run tests side by side
WORKERS ?= 2

.PHONY: demo test test-slow fuzz check format bench bench-7b quality soak docs docs-serve coverage wheel-check hooks clean
demo: $(READY)
	$(BIN)/ultraedit demo

# Two at a time: tests that share a cluster or a long reference run stay together (tests/support/side_by_side.py)
test: $(READY)
	@began=$$(date +%s); $(BIN)/python -m pytest -m "not slow" -n $(WORKERS); code=$$?; \
	took=$$(( $$(date +%s) - began )); echo "make test took $$((took / 60)) min $$((took % 60)) s with $(WORKERS) workers"; exit $$code

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

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

quality: $(READY)
	$(BIN)/python -m tests.benchmarks.quality --counterfact $(SHARED)/counterfact-edit.json --zsre $(SHARED)/zsre_mend_edit.json

soak: $(READY)
	$(BIN)/python -m tests.benchmarks.soak

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --strict --clean

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs serve

coverage: $(READY)
	$(BIN)/python -m pytest -m "not slow" --cov=editing --cov=workers --cov=orchestrator --cov-report=term-missing:skip-covered --cov-report=html

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tracking,distributed,demo,export,dev]"
	touch $@

clean:
	rm -rf $(VENV) .cache runs mlruns mlartifacts mlflow.db site htmlcov .coverage
