# `make` alone lists the targets. Needs GNU make and a Python with venv (README, "Two commands"); PYTHON= names another.
BIN := .venv/bin
STAMP := .venv/.installed
UV := .cache/uv/bin/uv
RAY_STAMP := .cache/ray/.installed
LOWEST_STAMP := .cache/lowest/.installed
FUZZ_STAMP := .cache/fuzz/.installed
SBOM := .cache/sbom/bin/cyclonedx-py
CLIENTS := sdks llama-index aiperf mteb
BENCH_STAMP := .venv/.bench-installed
# Hundreds of Pythons are started: without bytecode each would compile everything. Threads of BLAS would wait for each other.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -p tests.both_ends
FAST := "not (clients or layouts or gateways or benchmarks or faults or installs or chromium or ray or containers)"
PERF_ANALYZER := .cache/perf_analyzer/bin/perf_analyzer
BENCH_PYTHON ?= $(BIN)/python
BENCH = $(BENCH_PYTHON) -m lab.benchmarks
BENCH_GPU = PYTHONPATH=model_repository/qwen3_vl_embed/1$${PYTHONPATH:+:$$PYTHONPATH} $(BENCH)
BENCH_ON ?= --checkpoint 4b --device cuda
BENCH_FLAGS ?=
PERF_ON = LD_LIBRARY_PATH="$$PWD/.cache/perf_analyzer/lib$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"
UVX = UV_CACHE_DIR=.cache/uv/cache .cache/uv/bin/uvx --quiet --python $(BIN)/python
AIPERF = $(UVX) --from aiperf==0.13.0 aiperf profile -m qwen3-vl-color-tiny -u http://localhost:8001 --endpoint-type template \
	--extra-inputs response_field:embedding --tokenizer checkpoints/qwen3-vl-color-tiny --request-count 100 --concurrency 8 \
	--workers-max 2 --record-processors 1 --artifact-dir .cache/aiperf --ui none
EXTRAS = $(foreach extra,parquet bulk search lancedb evaluation local lora,--extra $(extra))
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

# `$(BIN)/python -c "$$FINDS" FOLDER NAME`: that Python finds what lies in FOLDER, by NAME.pth among its packages. The
# file is ASCII whatever the path is: Triton's stub reads it with a locale of ASCII, and does not start otherwise.
define FINDS
import os, pathlib, sys, sysconfig
path, name = os.fsencode(pathlib.Path(sys.argv[1]).resolve()), f"{sys.argv[2]}.pth"
line = f"import os, sys; sys.path.append(os.fsdecode({path}))\n"
pathlib.Path(sysconfig.get_path("purelib"), name).write_text(line, "ascii")
endef
export FINDS

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 20

setup: $(STAMP)  ## the virtual environment with pinned, hashed dependencies and the real tritonserver

$(STAMP): requirements/dev.txt requirements/tritonserver.txt pyproject.toml
	@test -x $(BIN)/python || PYTHON="$(PYTHON)" qwen3_vl_embed/serving/venv.sh
	@echo "installing dependencies (about 5 GB with torch's CUDA build, a minute or two) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/tritonserver.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c "$$FINDS" model_repository/qwen3_vl_embed/1 embedder  # in the wheel: qwen3_vl_embed.embedder
	@touch $@

serve: setup  ## serve the tiny checkpoint at http://localhost:8001 (CHECKPOINT=… another, SERVE_PORT=… elsewhere)
	@$(BIN)/python -m qwen3_vl_embed.serving

demo: setup  ## the search page over colours and drawn pictures, with the tiny checkpoint: http://127.0.0.1:8009
	@$(BIN)/python -m lab.demo

test: check  ## format, lint, types, then the fast tests with the real tritonserver and the adapter (three minutes)
	@$(PYTEST) -m $(FAST)

test-lowest: $(LOWEST_STAMP)  ## the fast tests with the lowest versions that pyproject.toml allows, but for two of the pinned ones'
	@$(PYTEST:$(BIN)/%=.cache/lowest/bin/%) -W default::DeprecationWarning -m $(FAST) --ignore tests/test_count.py --ignore tests/test_licences.py

test-ray: setup $(RAY_STAMP)  ## bulk on a Ray cluster whose nodes and drivers are killed
test-gateways: setup  ## through nginx and HAProxy (apt install nginx-light haproxy)
test-clients: $(CLIENTS:%=.cache/clients/%/.installed)  ## OpenAI's, LangChain, LlamaIndex, LiteLLM, Haystack, Cohere, mteb, AIPerf
test-chromium: setup  ## our pixels beside those of Debian's Chromium (apt install chromium)
test-layouts: setup  ## checkpoint folders as other libraries write them
test-benchmarks: setup  ## the programs of lab run to their end, the check of a GPU on this CPU
test-faults: setup  ## what starts, breaks or ends its own: faults, signals, workers, costly inputs, strangers, the pipelined model
test-installs: setup  ## the wheel in an empty environment, and a Python of its own where none fits
test-containers: setup  ## build and run the containers with podman (as root)
	@$(PYTEST) -n 0 -m containers

test-ray test-gateways test-clients test-chromium test-layouts test-benchmarks test-faults test-installs:
	@$(PYTEST) -m $(@:test-%=%)

test-long: setup $(RAY_STAMP) $(CLIENTS:%=.cache/clients/%/.installed)  ## all of these in one run, but for Chromium and the containers
	@$(PYTEST) -m "gateways or installs or clients or ray or layouts or benchmarks or faults"

$(RAY_STAMP): $(STAMP) requirements/ray.txt
	@test -x .cache/ray/bin/pip || $(BIN)/python -m venv .cache/ray
	@.cache/ray/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/ray.txt
	@touch $@

$(LOWEST_STAMP): $(STAMP) requirements/lowest.txt
	@$(BIN)/python -m venv --clear .cache/lowest
	@.cache/lowest/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lowest.txt
	@.cache/lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/tritonserver.txt
	@.cache/lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@.cache/lowest/bin/python -c "$$FINDS" model_repository/qwen3_vl_embed/1 embedder
	@touch $@

test-all: test test-long test-chromium  ## all but the containers

check: setup  ## format, lint, who imports whom, types: half a minute
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/python -c "from importlinter.cli import lint_imports_command as main; main()"
	@$(BIN)/python -m mypy

format: setup  ## write the format that `make check` asks for
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

options: setup  ## write what is made from the table of options: the adapter's, the client's, the tables of docs/
	@$(BIN)/python -m lab.options

TASK ?= colours

train: setup  ## train a tiny checkpoint anew: TASK=colours or TASK=shapes (two cores, up to 20 minutes)
	@$(BIN)/python -m lab.training.train --task $(TASK)

measure: setup  ## a shipped checkpoint's figures, TASK as above
	@$(BIN)/python -m lab.training.measure --task $(TASK)

bench-setup: $(BENCH_STAMP)  ## what the benchmarks compare with: sentence-transformers, perf_analyzer

$(BENCH_STAMP): $(STAMP) $(PERF_ANALYZER) requirements/bench.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

$(PERF_ANALYZER): $(STAMP) requirements/perf_analyzer.txt  # with the CUDA runtime 12 that it wants, which tritonserver's wheel brings
	@$(BIN)/python -m venv --clear .cache/perf_analyzer
	@.cache/perf_analyzer/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/perf_analyzer.txt
	@ln -sf "$$PWD"/.venv/lib/python3.*/site-packages/nvidia_pytriton.libs/libcudart-*.so.12.* .cache/perf_analyzer/lib/libcudart.so.12
	@touch $@

perf-analyzer: $(PERF_ANALYZER)  ## load on a running server past the adapter (apt install libb64-0d), texts and images in turn
	@$(PERF_ON) $< -m qwen3_vl_embed -u localhost:8011 -i grpc --input-data examples/perf_analyzer.json --concurrency-range 8 --stability-percentage 50

model-analyzer: $(PERF_ANALYZER) $(UV)  ## Triton's Model Analyzer over SERVE_TRITON_OPEN_APIS=model-repository make serve
	@rm -rf .cache/model_analyzer && mkdir -p .cache/model_analyzer
	@$(PERF_ON) $(UVX) --from triton-model-analyzer==1.58.0 model-analyzer profile -f examples/model_analyzer.yaml

aiperf: $(STAMP) $(UV)  ## AIPerf over a running server: 100 texts, then 100 swatches, eight at once
	@$(AIPERF) --custom-endpoint /txt/embed --extra-inputs 'payload_template:{"input": {{ texts|tojson }}}'
	@$(AIPERF) --custom-endpoint /img/embed --extra-inputs 'payload_template:{"input": {{ images|tojson }}}' --image-width-mean 244 --image-height-mean 244

bench: bench-setup  ## what a CPU gives of docs/performance.md, without count and sizing (two cores, some 35 minutes)
	@$(BENCH).forward --checkpoint tiny $(BENCH_FLAGS)
	@$(BENCH).forward --checkpoint 100m $(BENCH_FLAGS)
	@$(BENCH).peers --checkpoint tiny $(BENCH_FLAGS)
	@$(BENCH).peers --checkpoint 100m $(BENCH_FLAGS)
	@$(BENCH).serve --checkpoint tiny $(BENCH_FLAGS)
	@$(BENCH).serve --checkpoint 100m --part share $(BENCH_FLAGS)
	@$(BENCH).growth --checkpoint tiny $(BENCH_FLAGS)
	@$(BENCH).growth --checkpoint 100m $(BENCH_FLAGS)
	@$(BENCH).table

bench-quick:  ## the same programs in a few minutes, results thrown away: do they work?
	@$(MAKE) --no-print-directory bench BENCH_FLAGS=--quick

bench-gpu:  ## the rows that need a GPU, with the 4B's shape (BENCH_PYTHON=python3 where there is no .venv)
	@status=0; for program in "gpu_check --json lab/benchmarks/results/gpu_check-4b-cuda.json" "peers $(BENCH_ON) $(BENCH_FLAGS)" "serve $(BENCH_ON) $(BENCH_FLAGS)"; do \
		$(BENCH_GPU).$$program || { status=1; echo "$${program%% *} failed; the others go on" >&2; }; \
	done; $(BENCH_GPU).table || status=1; exit $$status

bench-load: setup  ## four times too many callers, and an hour of mixed load: docs/reliability.md (an hour and a quarter)
	@$(BENCH).overload --checkpoint tiny $(BENCH_FLAGS)
	@$(BENCH).overload --checkpoint 100m --kind colours $(BENCH_FLAGS)
	@$(BENCH).soak --checkpoint tiny $(BENCH_FLAGS)
	@$(BENCH).table

fuzz: $(FUZZ_STAMP)  ## look for inputs without a documented outcome (a few minutes)
	@ODD_TEXTS=20000 $(BIN)/python -m pytest tests/test_odd_texts.py
	@PYTHONPATH=.:model_repository/qwen3_vl_embed/1 $(BIN)/python -m lab.fuzz --seconds 60 --seed 1

$(FUZZ_STAMP): $(STAMP) requirements/fuzz.txt
	@test -x .cache/fuzz/bin/pip || $(BIN)/python -m venv .cache/fuzz
	@.cache/fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@touch $@

# mteb's environment has the project's packages too, so that torch is there once; only pip looks there.
.cache/clients/mteb/.installed: requirements/clients-mteb.txt $(STAMP)
	@test -x .cache/clients/mteb/bin/pip || $(BIN)/python -m venv .cache/clients/mteb
	@.cache/clients/mteb/bin/python -c "$$FINDS" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" project
	@.cache/clients/mteb/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.cache/clients/%/.installed: requirements/clients-%.txt $(STAMP) $(UV)
	@test -x .cache/clients/$*/bin/python || $(BIN)/python -m venv --without-pip .cache/clients/$*
	@UV_CACHE_DIR=.cache/uv/cache $(UV) pip install --quiet --python .cache/clients/$*/bin/python --require-hashes -r $<
	@touch $@

audit:  ## known vulnerabilities of the pinned dependencies (asks the package index)
	@test -x .cache/audit/bin/pip-audit || { python3 -m venv .cache/audit && .cache/audit/bin/python -m pip install --quiet pip-audit; }
	@.cache/audit/bin/python -m pip_audit --require-hashes --disable-pip -r requirements/client.txt -r requirements/server.txt

licences: setup  ## write the table of docs/licences.md
	@$(BIN)/python -m lab.licences

sbom: $(SBOM)  ## what the images and the wheel are pinned to, with hashes, as CycloneDX: build/sbom/
	@mkdir -p build/sbom
	@$(SBOM) requirements --pyproject pyproject.toml --output-reproducible -o build/sbom/wheel.cdx.json requirements/wheel.txt
	@$(SBOM) requirements --output-reproducible -o build/sbom/adapter.cdx.json requirements/client.txt
	@$(SBOM) requirements --output-reproducible -o build/sbom/triton.cdx.json requirements/server.txt
	@ls build/sbom/*

$(SBOM): requirements/sbom.txt
	@test -x .cache/sbom/bin/pip || python3 -m venv .cache/sbom
	@.cache/sbom/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

lock: $(UV)  ## resolve pyproject.toml into requirements/*.txt
	$(COMPILE) pyproject.toml $(EXTRAS) --group server --group adapter --group dev -c requirements/pins.txt -o requirements/dev.txt
	$(COMPILE) pyproject.toml $(EXTRAS) --group server --group adapter --group dev --resolution lowest-direct -o requirements/lowest.txt
	$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/wheel.txt
	$(COMPILE) --group pyproject.toml:adapter -c requirements/dev.txt -o requirements/client.txt
	$(COMPILE) --group pyproject.toml:server -c requirements/dev.txt -o requirements/server.txt
	$(COMPILE) --group pyproject.toml:lora --group pyproject.toml:server -c requirements/dev.txt -o requirements/lora.txt
	$(COMPILE) --group pyproject.toml:bench -c requirements/dev.txt -o requirements/bench.txt
	$(COMPILE) --group pyproject.toml:fuzz -c requirements/dev.txt -o requirements/fuzz.txt
	for name in sdks llama-index aiperf; do $(COMPILE) --group pyproject.toml:clients-$$name -o requirements/clients-$$name.txt; done
	$(COMPILE) --group pyproject.toml:clients-mteb -c requirements/dev.txt -o requirements/clients-mteb.txt
	$(COMPILE) pyproject.toml --extra ray -c requirements/dev.txt -o requirements/ray.txt
	$(COMPILE) --group pyproject.toml:sbom -o requirements/sbom.txt
	$(COMPILE) --group pyproject.toml:uv -o requirements/uv.txt

$(UV): requirements/uv.txt  # any Python will do for it; Debian's may have pip and no venv, or no pip and a venv
	@rm -rf .cache/uv
	@if python3 -m venv .cache/uv >/dev/null 2>&1; then pip=".cache/uv/bin/python -m pip"; \
	elif python3 -m pip --version >/dev/null 2>&1; then pip="python3 -m pip"; target="--target .cache/uv"; \
	else echo "Python has neither venv nor pip here: apt install python3-venv" >&2; exit 1; fi; \
	$$pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes $$target -r $<

clean:  ## remove the virtual environment and all caches
	rm -rf .venv .cache build *.egg-info

.DEFAULT_GOAL := help
.PHONY: help setup serve demo test test-ray test-gateways test-clients test-chromium test-layouts test-benchmarks test-faults test-installs test-containers test-all check format options train measure bench perf-analyzer model-analyzer aiperf bench-setup bench-quick bench-load bench-gpu fuzz audit licences sbom lock clean
