# make demo: two processes move KV cache, every byte checked.   make test: sets up and runs all tests.
# ARGS goes to the program:  make demo ARGS="--model llama-3-8b --requests 8"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
ALL    := pdcore plugins tests
DISTS  := plugins/pd-mooncake plugins/pd-nixl plugins/pd-mori

.PHONY: demo test check bench wheels clean

demo: $(VENV)/.installed
	$(BIN)/pdcore demo $(ARGS)

test: $(VENV)/.developed
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.developed
	$(BIN)/ruff check $(ALL)
	$(BIN)/ruff format --check $(ALL)
	$(BIN)/mypy $(ALL)

bench: $(VENV)/.installed
	$(BIN)/pdcore bench $(ARGS)

wheels: $(VENV)/.installed
	rm -rf dist
	$(PIP) wheel --no-deps --wheel-dir dist . $(DISTS)

clean:
	rm -rf $(VENV) dist

# A python3 without ensurepip (Debian without python3-venv) still has pip: that one fills the venv.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --quiet --python $(BIN)/python install pip; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --editable .
	touch $@

$(VENV)/.developed: $(VENV)/.installed $(VENV)/.libraries $(DISTS:%=%/pyproject.toml)
	$(PIP) install --group dev
	$(PIP) install --editable 'plugins/pd-mooncake[cpu]' --editable plugins/pd-nixl --editable plugins/pd-mori
	$(PIP) install --no-deps 'nixl-cu12>=1.5,<2'
	touch $@

# The engines' wheels link system libraries that they don't carry.
LIBRARIES := libibverbs1 ibverbs-providers libnuma1 libcurl4

$(VENV)/.libraries: | $(BIN)/python
	$(BIN)/python -c "import ctypes; [ctypes.CDLL(n) for n in ('libibverbs.so.1', 'libnuma.so.1', 'libcurl.so.4')]" \
	  2>/dev/null || { apt-get -qq update && apt-get -qq install -y --no-install-recommends $(LIBRARIES); } \
	  || { echo 'as root: apt-get install $(LIBRARIES)'; exit 1; }
	touch $@
