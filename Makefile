# `make demo` shows the main job, `make test` runs every check, `make check-all` the slower ones besides.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test suite compiled browser serve-load serve-api check-all check-docs core-alone overhead convert-speed full-size fuzz attack zoo deployed crosscheck engines cluster lint format schema prototxt clean opsets consumers sources pt2-axes models examples
.NOTPARALLEL:  # times are taken

# The torch pin in constraints.txt takes a CPU wheel where one is at hand; see README, "Installing".
$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,lint]"
	touch $(READY)

demo: $(READY)
	$(RUN) tools/demo.py --out demo

test: $(READY) lint suite

# Every command that a test starts imports compiled modules, whatever the shell says of writing them.
SUITE = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN) -m pytest
suite: $(READY)
	$(SUITE) -n 2 --dist worksteal

# Compiles what the suite imports, its own files with their assertions, while the other processor runs `make lint`.
compiled: $(READY)
	$(SUITE) --collect-only -qq >/dev/null

# The browser of tests/web: Debian's chromium, where apt can install it; without it those tests are skipped with their reason.
BROWSER_SECONDS ?= 55
browser:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then echo "a browser is installed"; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		timeout $(BROWSER_SECONDS) sh -c "apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium" \
			>/dev/null 2>&1 </dev/null && echo "chromium is installed" \
			|| echo "chromium was not installed in $(BROWSER_SECONDS) s: install it as root by apt-get install chromium"; \
	else echo "chromium is missing: install it as root by apt-get install chromium"; fi

# What takes too long for `make test`, or needs a quiet machine or the network.  It ends at the first that fails;
# `make -k check-all` runs the others too.
check-all: check-docs core-alone overhead convert-speed full-size fuzz attack crosscheck opsets engines examples pt2-axes cluster models serve-load serve-api

# The core's tests in a copy without the study: neither its code nor its commands are there.
core-alone: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests/helpers/core_alone.py -q -n 2 --dist worksteal

# The pages with what takes too long for `make test`: README's `make demo` and the training of docs/training.md.
check-docs: $(READY)
	SLOW_DOCS=1 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/test_docs.py -k holds

# `net(x)` takes at most 1.2 x bare torch, pycaffe's `net.forward()` 1.05 x `net(x)`.
overhead: $(READY)
	OMP_NUM_THREADS=1 $(RUN) benchmarks/bench_overhead.py --check
	OMP_NUM_THREADS=1 $(RUN) benchmarks/bench_pycaffe.py --check

# Converting 604 MB takes at most 3 x `cp`, loading them 0.3 s and no more than one hash besides.
convert-speed: $(READY)
	OMP_NUM_THREADS=1 $(RUN) benchmarks/bench_convert.py --repeat 3 --check

# ILGNet in its own size through every format and back; 5 GB of disk.
full-size: $(READY)
	rm -rf .make/full-size
	$(RUN) tools/demo.py --out .make/full-size
	$(RUN) tools/convert_caffe.py .make/full-size/ilgnet_random.caffemodel --verify \
		--to safetensors,onnx,pt2,python,caffemodel,hdf5 --out .make/full-size/converted
	rm -rf .make/full-size

# Models of scores: rows that are independent, runs that are killed, and runs of two processes; every model as ONNX and
# pt2; trunks of 550 MB.
models: $(READY)
	SLOW_MODELS=1 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/aesthetics/test_models.py tests/aesthetics/test_model_runs.py \
		tests/aesthetics/test_model_exports.py tests/aesthetics/test_caffe_trunks.py

# Open axes of pt2 files, and their bytes in another process; tracing takes seconds per net.
pt2-axes: $(READY)
	SLOW_PT2=1 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/export/test_pt2_axes.py tests/export/test_pt2.py

# On a local Ray of two workers; skipped where ray is not installed.
cluster: $(READY)
	SLOW_CLUSTER=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -rs tests/reading/test_cluster.py tests/test_cluster_scores.py \
		tests/aesthetics/test_cluster_test.py

FUZZ_SECONDS ?= 120
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests/fuzz/fuzz_formats.py --seconds $(FUZZ_SECONDS)

# Every recorded layer in ONNX Runtime and OpenVINO, as far as they are installed; `make test` runs a twelfth.
engines: $(READY)
	ALL_ENGINE_CASES=1 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/engines/test_engines.py

# Properties on all of hypothesis's examples, and every recorded layer on a pretended device; `make test` takes a part.
examples: $(READY)
	ALL_EXAMPLES=1 ALL_DEVICE_CASES=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 tests/layers tests/caffe/test_prototxt_property.py

# Hostile files, kills, full disks and commands under bad conditions, in the long form.
ATTACK_SECONDS ?= 300
attack: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests/attack/attack_severe.py
	OMP_NUM_THREADS=1 $(RUN) tests/attack/attack_ends.py
	OMP_NUM_THREADS=1 $(RUN) tests/attack/attack_fuzz.py --cases 20000 --seconds $(ATTACK_SECONDS)
	OMP_NUM_THREADS=1 $(RUN) tests/attack/attack_kill.py --ilgnet $(VENV)/bin/ilgnet --rounds 20 --leftovers-fail

# docs/zoo.md: every net of the zoo in every form beside OpenCV, and the deployed nets where they are; about 20 minutes.
zoo: $(READY)
	OMP_NUM_THREADS=1 $(RUN) benchmarks/zoo_agreement.py

# Nets that people deployed, with what Caffe made of them, and their checker; neither is committed.  Not part of
# check-all as long as some of these nets are refused.
SHARED ?= ../shared
deployed: $(READY)
	@if [ -f $(SHARED)/tools/check_deployed.py ] && [ -d $(SHARED)/golden/deployed ]; then \
		OMP_NUM_THREADS=1 $(RUN) $(SHARED)/tools/check_deployed.py $(SHARED)/golden/deployed \
			--forms torch,fast,onnx,python,fold,safetensors; \
	else echo "skipped: the deployed nets are not in $(SHARED)"; fi

# Two hundred uploads to `ilgnet serve` at the same time, and the growth of its memory.
serve-load: $(READY)
	OMP_NUM_THREADS=1 $(RUN) benchmarks/bench_serve.py --check

# The API of `ilgnet serve` by its own OpenAPI text: schemathesis finds nothing.  It has an environment of its own.
serve-api: $(READY)
	$(PYTHON) -m venv .make/schemathesis
	.make/schemathesis/bin/python -m pip install --quiet --disable-pip-version-check "schemathesis==4.32.5"
	OMP_NUM_THREADS=1 $(RUN) tests/helpers/serve_schema.py .make/schemathesis/bin/schemathesis

# Two converters by others, as witnesses for `ilgnet compare`; without their dependencies, which would
# replace onnx and torch.
crosscheck: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps caffe2onnx==2.0.1 onnx2torch==1.5.15 torchvision==0.29.2
	OMP_NUM_THREADS=1 $(RUN) -m pytest -rs tests/compare/test_compare.py

# Every recorded layer and random net through the lowest and the newest opset in ONNX Runtime.
opsets: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests/helpers/opset_sweep.py

# What other programs make of our ONNX files: the table of docs/consumers.md.  Installs several GB in .make/consumers.
consumers: $(READY)
	OMP_NUM_THREADS=1 $(RUN) benchmarks/consumers.py --write

# Written Python under torch's own tools: the second table of docs/consumers.md; about ten minutes, and it continues where
# it was stopped.
sources: $(READY)
	OMP_NUM_THREADS=1 $(RUN) tests/helpers/source_sweep.py --only zoo layers deployed \
		--tools trace compile inductor export symbolic quantized --write

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The generated module suits every protobuf from 4.25 on because an old compiler writes it: newer ones
# stamp a least runtime version.
schema:
	$(PYTHON) -m venv .make/schema
	.make/schema/bin/pip install --quiet "grpcio-tools==1.62.3" "setuptools<80"
	.make/schema/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. ilgnet_repro/schema/caffe.proto

prototxt: $(READY)
	$(RUN) -m ilgnet_repro.zoo.catalogue --write

clean:
	rm -rf $(VENV) .make demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
