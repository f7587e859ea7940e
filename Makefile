# make demo: two processes move KV cache, every byte checked.   make test: sets up what tests need, and runs them.
# ARGS goes to the program:  make demo ARGS="--model llama-3-8b --requests 8"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
ALL    := pdcore plugins adapters tests
ADAPTERS := adapters/pdcore-vllm adapters/pdcore-sglang
DISTS  := plugins/pd-mooncake plugins/pd-nixl plugins/pd-mori $(ADAPTERS)

MORI     := .venv-mori
PY310    ?= $(shell for python in python3.10 $$HOME/.pyenv/versions/3.10*/bin/python; do \
  $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null && echo $$python && break; done)
NO_PY310 := no Python 3.10 was found. Install one (apt-get install python3.10-venv, or pyenv install 3.10), or name it with PY310=
NO_MORI  = $(if $(filter-out x86_64,$(shell uname -m)),amd_mori is built for x86_64 only,$(if $(PY310),,$(NO_PY310)))

# The inference engines; their versions are pinned for the Python that they ran with.
SERVERS  := vllm sglang
PY311    ?= $(shell for python in python3.11 $$HOME/.pyenv/versions/3.11*/bin/python; do \
  $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$python && break; done)
NO_PY311 := no Python 3.11 was found. Install one (apt-get install python3.11-venv, or pyenv install 3.11), or name it with PY311=

.PHONY: demo groups test test-engines test-mori test-vllm test-sglang gpu-kit gpu-check serve-demo chaos check bench wheels clean

demo: $(VENV)/.installed
	$(BIN)/pdcore demo $(ARGS)

# Three workers on two cores: most tests wait for other processes. Those of one file stay together, and
# tests/conftest.py has the longest files begin first.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder

# Unequal groups of ranks, each case over each engine.
ENGINES := local mooncake_tcp nixl

groups: $(VENV)/.developed
	@for engine in $(ENGINES); do while read -r case; do \
	  echo "$$engine $$case"; \
	  out=$$($(BIN)/pdcore demo --backend $$engine --requests 4 --longest 390 --concurrency 2 --memory 1 \
	    $$case $(ARGS) 2>&1 </dev/null) || { echo "$$out"; exit 1; }; \
	  echo "$$out" | grep ^verified; \
	done <tests/group_cases.txt; done

# What takes long, most of it on the real engines: conformance in full, processes that are killed, stopped,
# forked or short of descriptors, and wheels in a clean environment.
ENGINE_TESTS := $(patsubst %,tests/%.py,plugins/test_mooncake_conformance plugins/test_nixl_conformance \
  testing/test_conform_local plugins/test_parcel_conformance plugins/test_engines_kill decode/test_dead_prefill \
  host/test_descriptors testing/test_chaos demo/test_kill host/test_fork host/test_shortage \
  plugins/test_mooncake_ipv6 test_wheels)

# With ARGS, the tests that they pick; without, all but those of test-engines.
test: $(VENV)/.developed
	$(BIN)/python -m pytest $(WORKERS) $(or $(ARGS),--ignore=tests/gpu $(ENGINE_TESTS:%=--ignore=%))

# MORI-IO's first, where its wheel can be had.
test-engines: $(VENV)/.developed
	@if [ '$(NO_MORI)' ]; then echo 'make test-mori not run: $(NO_MORI)'; else $(MAKE) --no-print-directory test-mori; fi
	$(BIN)/python -m pytest $(WORKERS) $(ENGINE_TESTS) $(ARGS)

test-mori: $(MORI)/.emulated
	$(MORI)/run -m pytest $(MORI_TESTS) $(ARGS)

# Real servers, asked over HTTP; their logs stay in .serving, PDCORE_SERVING_LOGS names another folder.
$(SERVERS:%=test-%): test-%: .venv-%/.ready
	.venv-$*/bin/python -m pytest -o pythonpath= -o timeout=900 tests/real_$* $(ARGS)

# What a machine with a GPU and no network needs, in one file, and what runs there:  see docs/GPU.md
#   make gpu-kit ENGINE=nixl     make gpu-check     make gpu-check DEVICE=cpu
ENGINE ?= nixl mooncake
DEVICE ?= cuda

gpu-kit: $(VENV)/.developed
	$(BIN)/python tests/gpu/kit.py $(ENGINE)

gpu-check: $(if $(filter cpu,$(DEVICE)),$(VENV)/.developed)
	DEVICE=$(DEVICE) bash tests/gpu/run.sh

# A prefill server, a decode server, a router and a single server:  make serve-demo ARGS="--engine sglang --requests 50"
serve-demo: .venv-$(if $(findstring sglang,$(ARGS)),sglang,vllm)/.ready
	$(<D)/bin/python -m tests.serving.demo $(ARGS)

check: $(VENV)/.developed
	$(BIN)/ruff check $(ALL)
	$(BIN)/ruff format --check $(ALL)
	$(BIN)/mypy $(ALL)

# Kills, stops and restarts workers while requests flow:  make chaos ARGS="--seconds 60 --seed 7"
chaos: $(VENV)/.developed
	$(BIN)/python -m pdcore.testing.chaos $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/pdcore bench $(ARGS)

wheels: $(VENV)/.installed
	rm -rf dist
	$(PIP) wheel --no-deps --wheel-dir dist . $(DISTS)

clean:
	rm -rf $(VENV) $(MORI) $(SERVERS:%=.venv-%) .serving .gpu-kit .gpu-out dist

# A Python without ensurepip (Debian without python3-venv) still has pip: that one fills the venv.
venv = $(1) -m venv $(2) 2>/dev/null || { \
  $(1) -m venv --clear --without-pip $(2) && $(1) -m pip --quiet --python $(2)/bin/python install pip; }

# The engines' wheels link system libraries that they don't carry.
loads = $(1) -c 'import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]]' $(2)
need  = { $(1); } >/dev/null 2>&1 \
  || { apt-get -qq update && apt-get -qq install -y --no-install-recommends $(2); } \
  || { echo 'as root: apt-get install $(2)'; exit 1; }

$(BIN)/python:
	$(call venv,$(PYTHON),$(VENV))

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --editable .
	touch $@

$(VENV)/.developed: $(VENV)/.installed $(VENV)/.libraries $(DISTS:%=%/pyproject.toml)
	$(PIP) install --group dev
	$(PIP) install --editable 'plugins/pd-mooncake[cpu]' --editable plugins/pd-nixl --editable plugins/pd-mori \
	  $(ADAPTERS:%=--editable %)
	$(PIP) install --no-deps 'nixl-cu12>=1.5,<2'
	touch $@

LIBRARIES := libibverbs1 ibverbs-providers libnuma1 libcurl4

$(VENV)/.libraries: | $(BIN)/python
	$(call need,$(call loads,$(BIN)/python,libibverbs.so.1 libnuma.so.1 libcurl.so.4),$(LIBRARIES))
	touch $@

# The real MORI-IO on emulated hardware, see tests/mori_on_cpu/README.md. Its wheel is for Python 3.10.
MORI_TESTS     := tests/real_mori
MORI_PIP       := $(MORI)/bin/python -m pip --quiet --disable-pip-version-check
MORI_SONAMES   := libpci.so.3 libnuma.so.1 libdrm.so.2 libdrm_amdgpu.so.1
MORI_LIBRARIES := libpci3 libnuma1 libdrm2 libdrm-amdgpu1 libibverbs-dev libc6-dev gcc binutils

$(MORI)/bin/python:
	$(call venv,$(or $(PY310),$(error $(NO_PY310))),$(MORI))

$(MORI)/.libraries: | $(MORI)/bin/python
	$(call need,$(call loads,$(MORI)/bin/python,$(MORI_SONAMES)) \
	  && gcc -fsyntax-only -include infiniband/verbs.h -x c /dev/null && nm --version,$(MORI_LIBRARIES))
	touch $@

$(MORI)/.installed: pyproject.toml plugins/pd-mori/pyproject.toml | $(MORI)/.libraries
	$(MORI_PIP) install --upgrade 'pip>=25.1'
	$(MORI_PIP) install --group test --editable . --editable plugins/pd-mori amd_mori==1.2.4
	touch $@

$(MORI)/.emulated: $(MORI)/.installed $(wildcard tests/mori_on_cpu/*.[ch] tests/mori_on_cpu/*.py)
	$(MORI)/bin/python tests/mori_on_cpu/build.py
	touch $@

# The real vLLM and SGLang on a CPU, see tests/vllm_on_cpu and tests/sglang_on_cpu. Each environment takes 3.5 GB.
TORCH := torch==2.13.0

$(SERVERS:%=.venv-%/bin/python): .venv-%/bin/python:
	$(call venv,$(or $(PY311),$(error $(NO_PY311))),.venv-$*)

$(SERVERS:%=.venv-%/.libraries): .venv-%/.libraries: | .venv-%/bin/python
	$(call need,$(call loads,.venv-$*/bin/python,libibverbs.so.1 libnuma.so.1 libcurl.so.4),$(LIBRARIES))
	touch $@

# torch comes first and alone: the requirements of what comes later would bring CUDA's.
$(SERVERS:%=.venv-%/.installed): .venv-%/.installed: tests/%_on_cpu/requirements.txt | .venv-%/.libraries
	.venv-$*/bin/python -m pip --quiet --disable-pip-version-check install --upgrade 'pip>=25.1'
	.venv-$*/bin/python -m pip --quiet --disable-pip-version-check install $(TORCH)
	.venv-$*/bin/python -m pip --quiet --disable-pip-version-check install --no-deps --requirement $<
	touch $@

SERVED = . plugins/pd-mooncake plugins/pd-nixl adapters/pdcore-$* tests/third_party

$(SERVERS:%=.venv-%/.ready): .venv-%/.ready: .venv-%/.installed pyproject.toml $(DISTS:%=%/pyproject.toml) tests/serving/tiny_model.py
	.venv-$*/bin/python -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation $(SERVED:%=--editable %)
	.venv-$*/bin/python tests/serving/tiny_model.py .venv-$*/model
	touch $@
