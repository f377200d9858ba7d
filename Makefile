# Two commands do all: `make demo` shows the main job, `make test` runs every check.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test crosscheck lint format schema prototxt tables benchmarks clean

# The torch pin in constraints.txt takes a CPU wheel where one is at hand; see README, "Installing".
$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,lint]"
	touch $(READY)

demo: $(READY)
	$(RUN) tools/demo.py --out demo

test: $(READY) lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

# Two converters by others, as witnesses for `ilgnet compare`; without their dependencies, which would
# replace onnx and torch.
crosscheck: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps caffe2onnx==2.0.1 onnx2torch==1.5.15 torchvision==0.29.2
	OMP_NUM_THREADS=1 $(RUN) -m pytest -rs tests/conversion/test_compare.py

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
