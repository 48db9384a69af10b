# Makefile: builds ./blip2 and runs its tests. `make help` says what there is.
#
# In order: installing what is missing, what was asked for, what this machine has (dev/probe.sh), flags, rules for
# objects and programs, tests, parity with PyTorch, demo, the rest.

.PHONY: all deps programs test test-cuda test-cuda-sim parity demo list install clean help FORCE
.SECONDARY:

ifneq ($(filter deps,$(MAKECMDGOALS)),)
# `make deps demo`: the goals behind deps are made by a second make, which starts when the installation is done, so
# that it finds what was installed, also with -j.
OTHERS := $(filter-out deps,$(MAKECMDGOALS))
.PHONY: others $(OTHERS)
deps:
	@sh dev/deps.sh '$(CC)'
others: deps
	@$(MAKE) --no-print-directory $(OTHERS)
$(OTHERS): others
	@:
else

# ---------------------------------------------------------------------------------------------------------
# What was asked for. A flavour gets a folder of its own under build/, so that going to and fro rebuilds nothing:
# make FLAVOUR=clang CC=clang. Changed flags rebuild what is in it.

ifdef SAN
FLAVOUR ?= san
endif
BUILD := build$(FLAVOUR:%=/%)
PREFIX ?= /usr/local

# What this machine has, asked anew every time (0.2 s): FOUND_COMPILER, FOUND_JPEG, JPEG_LIBS and so on.
ifneq ($(filter-out clean help,$(or $(MAKECMDGOALS),all)),)
$(shell mkdir -p $(BUILD)/test && sh dev/probe.sh '$(CC)' $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) >$(BUILD)/found.$$$$ && \
        mv $(BUILD)/found.$$$$ $(BUILD)/found.mk)
include $(BUILD)/found.mk
endif

# ---------------------------------------------------------------------------------------------------------
# Flags. One binary for all x86-64 processors: no -march=native (matmul.c chooses at run time), no -ffast-math.
# Messages are cut at the end of their buffer by design (common.h), hence -Wno-format-truncation, which only gcc has.

comma := ,
FLAGS := -std=c11 -D_GNU_SOURCE -g -fopenmp-simd -Wall -Wextra -Wshadow -Wpedantic
FLAGS += $(if $(FOUND_GCC),-Wno-format-truncation) $(if $(WERROR),-Werror)
FLAGS += $(if $(SAN),-O1 -fno-omit-frame-pointer -fsanitize=address$(comma)undefined -fno-sanitize-recover=all,-O3)
LIBS := -lm -ldl

USE_OPENMP := $(if $(NO_OPENMP),,$(FOUND_OPENMP))
USE_JPEG := $(if $(NO_JPEG),,$(FOUND_JPEG))
USE_WEBP := $(if $(NO_WEBP),,$(FOUND_WEBP))
# without OpenMP nothing looks at the thread counts that only pragmas mention
FLAGS += $(if $(USE_OPENMP),-fopenmp,-Wno-unused-parameter)
FLAGS += $(if $(USE_JPEG),-DHAVE_JPEG $(JPEG_FLAGS))
FLAGS += $(if $(USE_WEBP),-DHAVE_WEBP $(WEBP_FLAGS))
FLAGS += $(STB_FLAGS)
LIBS += $(if $(USE_JPEG),$(JPEG_LIBS)) $(if $(USE_WEBP),$(WEBP_LIBS)) $(ZLIB_LIBS)

NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))

# Short lines unless V=1 asks for the commands themselves.
SAY = $(if $(V),,@echo '$(1) $@';)
COMPILE = $(call SAY,cc  )$(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
LINK = $(call SAY,link)$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

SOURCES := $(sort $(wildcard *.c))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
PARTS := $(filter-out $(BUILD)/main.o,$(OBJECTS))

# ---------------------------------------------------------------------------------------------------------
# Programs. ./blip2 is a copy of the flavour that was made last; sanitizer builds stay under build/.

all: $(if $(SAN),$(BUILD)/blip2,blip2 $(if $(NO_CUDA),,$(if $(NVCC),blip2_cuda.so)))

blip2: $(BUILD)/blip2 FORCE
	@cmp -s $< $@ || { cp $< $@.new && mv -f $@.new $@; }

$(BUILD)/blip2: $(OBJECTS)
	$(LINK)

$(BUILD)/%.o: %.c $(BUILD)/flags
	$(COMPILE)

$(BUILD)/test/%.o: test/%.c $(BUILD)/flags
	$(COMPILE)

# Changes only when the command lines do; then it also prints what they are made of.
$(BUILD)/flags: FORCE
	@echo '$(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LIBS)' >$@.new; \
	if cmp -s $@.new $@; then rm $@.new; else $(MAKE) --no-print-directory list && mv $@.new $@; fi

yes_no = $(if $(1),  found    ,  MISSING  )
list:
	@echo 'compiler$(call yes_no,$(FOUND_COMPILER))$(or $(FOUND_COMPILER),no "$(CC)" that works: "make deps" installs one)'
ifneq ($(FOUND_COMPILER),)
	@echo 'zlib    $(call yes_no,$(FOUND_ZLIB))$(if $(FOUND_ZLIB),,needed for weight files: "make deps" installs it)'
	@echo 'stb     $(call yes_no,$(FOUND_STB))$(if $(FOUND_STB),,needed for PNG: "make deps" installs it)'
	@echo 'OpenMP  $(if $(NO_OPENMP),  left out ,$(call yes_no,$(FOUND_OPENMP)))$(if $(USE_OPENMP),,runs on one thread)'
	@echo 'jpeg    $(if $(NO_JPEG),  left out ,$(call yes_no,$(FOUND_JPEG)))$(or $(USE_JPEG),stb_image: a little off)'
	@echo 'webp    $(if $(NO_WEBP),  left out ,$(call yes_no,$(FOUND_WEBP)))$(if $(USE_WEBP),,no WebP images)'
endif
	@$(if $(and $(FOUND_COMPILER),$(FOUND_ZLIB),$(FOUND_STB)),true,exit 1)

# ---------------------------------------------------------------------------------------------------------
# Tests: a program for each test/test_NAME.c, linked with all of blip2 but its main, and each test/test_NAME.sh.

TEST_PROGRAMS := $(patsubst test/%.c,$(BUILD)/%,$(sort $(wildcard test/test_*.c)))
TEST_SCRIPTS := $(sort $(wildcard test/test_*.sh))
TOOLS := $(patsubst test/%.c,$(BUILD)/%,$(wildcard test/compare_dumps.c))

$(BUILD)/test_%: $(BUILD)/test/test_%.o $(patsubst test/%.c,$(BUILD)/test/%.o,$(wildcard test/fixture.c)) $(PARTS)
	$(LINK)

$(BUILD)/compare_dumps: $(BUILD)/test/compare_dumps.o
	$(LINK)

programs: all $(TEST_PROGRAMS) $(TOOLS)

test: programs
	@SAN=$(SAN) sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps $(TEST_PROGRAMS) $(TEST_SCRIPTS)

# The CUDA code on the CPU (doc/cuda-sim.md). Needs g++ and the toolkit's headers, no nvcc and no GPU.

CUDA_INCLUDE ?= /usr/local/cuda/include
SIM := $(BUILD)/cuda_sim
SIM_CXX := g++ -std=c++17 -g -Wall -Wextra -DCUDA_SIM -Itest/cuda_sim -I. -isystem $(CUDA_INCLUDE) -MMD -MP
SIM_KERNELS := -O1 -Wno-unknown-pragmas -fsanitize=thread,undefined -fno-sanitize=vptr -fno-sanitize-recover=all \
               --param tsan-instrument-func-entry-exit=0 --param tsan-distinguish-volatile=1
SIM_OBJECTS := $(patsubst test/cuda_sim/%.cpp,$(SIM)/%.o,$(wildcard test/cuda_sim/cuda_sim*.cpp))

$(SIM_OBJECTS): $(SIM)/%.o: test/cuda_sim/%.cpp
	@mkdir -p $(SIM)
	$(call SAY,g++ )$(SIM_CXX) -O2 -c -o $@ $<

$(SIM)/test_sim.o: test/cuda_sim/test_sim.cpp
	@mkdir -p $(SIM)
	$(call SAY,g++ )$(SIM_CXX) $(SIM_KERNELS) -x c++ -c -o $@ $<

$(SIM)/test_sim: $(SIM)/test_sim.o $(SIM_OBJECTS)
	$(call SAY,link)g++ -fsanitize=address,undefined -o $@ $^ -ldl

$(SIM)/test_cuda.o: test/test_cuda.cu
	@mkdir -p $(SIM)
	$(call SAY,g++ )$(SIM_CXX) $(SIM_KERNELS) -x c++ -c -o $@ $<

$(SIM)/test_cuda: $(SIM)/test_cuda.o $(SIM_OBJECTS) $(BUILD)/test/fixture.o $(PARTS)
	$(call SAY,link)g++ -fsanitize=address,undefined -fopenmp -o $@ $^ $(LIBS) -ldl

test-cuda-sim: $(SIM)/test_sim $(SIM)/test_cuda
	@VERBOSE=1 sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps $^

# The CUDA backend, a shared object beside the program, which loads it when it runs (device.c). It has its own copies of
# the two C files that it calls. make without nvcc, or with NO_CUDA=1, leaves it out.

CUDA_ARCHS := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
NVCC_FLAGS := -std=c++17 -O3 $(CUDA_ARCHS) -Xcompiler -Wall,-Wextra,-fPIC$(if $(USE_OPENMP),$(comma)-fopenmp)
CUDA_SOURCES := blip2.cu $(wildcard cuda_*.h cuda_*.cuh) blip2.h common.h generate.h

$(BUILD)/cuda/%.o: %.c $(BUILD)/flags
	@mkdir -p $(BUILD)/cuda
	$(COMPILE) -fPIC

$(BUILD)/cuda/blip2.o: $(CUDA_SOURCES)
	@mkdir -p $(BUILD)/cuda
	$(call SAY,nvcc)$(NVCC) $(NVCC_FLAGS) -c -o $@ $<

$(BUILD)/blip2_cuda.so: $(BUILD)/cuda/blip2.o $(BUILD)/cuda/common.o $(BUILD)/cuda/generate.o
	$(call SAY,link)$(NVCC) -shared -cudart static -o $@ $^ -Xlinker -Bsymbolic -lcublasLt \
	    -Xlinker -rpath=$(abspath $(dir $(NVCC))../lib64) $(if $(USE_OPENMP),-lgomp)

blip2_cuda.so: $(BUILD)/blip2_cuda.so
	@cmp -s $< $@ || { cp $< $@.new && mv -f $@.new $@; }

$(BUILD)/test_cuda: test/test_cuda.cu $(CUDA_SOURCES) $(BUILD)/test/fixture.o $(PARTS)
	$(call SAY,nvcc)$(NVCC) $(NVCC_FLAGS) -o $@ $< $(BUILD)/test/fixture.o $(PARTS) -lcublasLt \
	    $(if $(USE_OPENMP),-lgomp) $(LIBS) -ldl

test-cuda: $(BUILD)/test_cuda
	@VERBOSE=1 sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps $^

# Parity: every test/parity*.py, in a virtual environment of its own (5 GB) unless PARITY_PYTHON names an interpreter
# that has what test/requirements.txt asks for.

PARITY_TESTS := $(sort $(wildcard test/parity*.py))

parity: programs $(if $(PARITY_PYTHON),,.venv/ready)
	@VERBOSE=1 PYTHON=$(or $(PARITY_PYTHON),.venv/bin/python) sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps \
	    $(PARITY_TESTS)

.venv/ready: test/requirements.txt
	python3 -m venv .venv || { echo 'no virtual environment without python3-venv: "make deps" installs it'; exit 1; }
	.venv/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# Until a trained model is there, two of the tests' models of random weights speak.
DEMO_IMAGES := test/data/tiny_0.png test/data/tiny_1.png

demo: all
	@echo
	@echo 'A tiny model with random weights looks at two images. It speaks gibberish, the same on every machine:'
	@for m in opt t5; do \
	    echo; echo "./blip2 -m test/data/tiny_$$m.bin $(DEMO_IMAGES)"; \
	    ./blip2 --quiet -m test/data/tiny_$$m.bin $(DEMO_IMAGES) || exit 1; done

install: all
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BUILD)/blip2 $(DESTDIR)$(PREFIX)/bin/blip2
	if [ -e blip2_cuda.so ]; then install -D -m 755 blip2_cuda.so $(DESTDIR)$(PREFIX)/lib/blip2/blip2_cuda.so; fi

clean:
	rm -rf build blip2 blip2_cuda.so

help:
	@echo 'make            ./blip2 from what is installed'
	@echo 'make deps       installs what is missing (apt-get; dnf and Homebrew untested)'
	@echo 'make demo       captions two images; make deps demo does both'
	@echo 'make test       all tests that need no Python; make programs only builds them'
	@echo 'make test-cuda      the CUDA backend on a GPU (REQUIRE_GPU=1: a missing one is a failure)'
	@echo 'make test-cuda-sim  the simulator that runs the CUDA code on the CPU, against planted mistakes'
	@echo 'make parity     compares every stage with PyTorch (installs it into .venv, 5 GB)'
	@echo 'make list       what was found on this machine'
	@echo 'make install    to PREFIX=$(PREFIX), below DESTDIR'
	@echo 'make clean      removes build/ and ./blip2'
	@echo
	@echo 'CC=clang  CFLAGS=...  LDFLAGS=...  compiler and additional flags'
	@echo 'SAN=1                 with address and undefined-behaviour sanitizers, under build/san'
	@echo 'WERROR=1              warnings are errors'
	@echo 'NO_CUDA=1             without the CUDA backend, which takes minutes to compile'
	@echo 'NO_OPENMP=1  NO_JPEG=1  NO_WEBP=1  leave it out'
	@echo 'FLAVOUR=name          build in build/name'
	@echo 'V=1                   show the commands'
	@echo 'PARITY_PYTHON=python  use this interpreter for make parity'

-include $(wildcard $(BUILD)/*.d $(BUILD)/test/*.d $(SIM)/*.d)
endif
