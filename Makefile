# Makefile: builds ./blip2 and runs its tests. `make help` says what there is.
#
# In order: installing what is missing, what was asked for, what this machine has (dev/probe.sh), flags, rules for
# objects and programs, tests, parity with PyTorch, demo, the rest.

.PHONY: all lib deps programs test test-cuda test-cuda-sim test-cuda-bugs test-cuda-sanitize cuda-report
.PHONY: parity fuzz fuzz_run demo list install uninstall clean help FORCE
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
FLAGS := -std=c11 -D_GNU_SOURCE -g -fPIC -fvisibility=hidden -fopenmp-simd -Wall -Wextra -Wshadow -Wpedantic
# Sums that must be the same to the bit are written twice (matmul_living.h); clang would contract one and not the other.
FLAGS += -ffp-contract=off
FLAGS += $(if $(FOUND_GCC),-Wno-format-truncation) $(if $(WERROR),-Werror)
SANITIZE := -fno-omit-frame-pointer -fsanitize=address$(comma)undefined -fno-sanitize-recover=all
FLAGS += $(if $(SAN),-O1 $(SANITIZE),$(if $(FUZZ),-O2 -Wno-pass-failed $(SANITIZE) -fsanitize=fuzzer-no-link,-O3))
LIBS := -lm -pthread -ldl

USE_JPEG := $(if $(NO_JPEG),,$(FOUND_JPEG))
USE_WEBP := $(if $(NO_WEBP),,$(FOUND_WEBP))
USE_EDIT := $(if $(NO_EDIT),,$(FOUND_EDIT))
FLAGS += $(if $(USE_JPEG),-DHAVE_JPEG $(JPEG_FLAGS))
FLAGS += $(if $(USE_WEBP),-DHAVE_WEBP $(WEBP_FLAGS))
FLAGS += $(if $(USE_EDIT),-DHAVE_EDIT $(EDIT_FLAGS))
FLAGS += $(STB_FLAGS)
LIBS += $(if $(USE_JPEG),$(JPEG_LIBS)) $(if $(USE_WEBP),$(WEBP_LIBS)) $(ZLIB_LIBS)
PROGRAM_LIBS := $(if $(USE_EDIT),$(EDIT_LIBS))      # what the library does without

# The CUDA backend is made where nvcc is; CUDA=0 leaves it out, CUDA=1 makes a missing nvcc an error.
NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_INCLUDE ?= /usr/local/cuda/include
USE_CUDA := $(if $(or $(SAN),$(filter 0,$(CUDA))),,$(or $(NVCC),$(CUDA)))

# Short lines unless V=1 asks for the commands themselves.
SAY = $(if $(V),,@echo '$(1) $@';)
OBJCOPY ?= objcopy
COMPILE = $(call SAY,cc  )$(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
LINK = $(call SAY,link)$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(PROGRAM_LIBS) $(LIBS)

SOURCES := $(sort $(wildcard *.c))
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
PARTS := $(filter-out $(BUILD)/main.o,$(OBJECTS))

# Everything that BLIP-2 is goes into the library; the program is the rest; common.c and threads.c are in both.
LIBRARY := $(patsubst %,$(BUILD)/%.o,libblip2 libblip2_% blip2 common device generate generate_% image image_% matmul \
             matmul_% model model_% readahead threads tokenizer tokenizer_% unicode_tables)
LIBRARY := $(filter $(LIBRARY),$(OBJECTS))
PROGRAM := $(filter-out $(LIBRARY),$(OBJECTS)) $(BUILD)/common.o $(BUILD)/threads.o
ABI := $(shell sed -n 's/^\#define BLIP2_ABI *\([0-9]*\).*/\1/p' libblip2.h)

# ---------------------------------------------------------------------------------------------------------
# Programs and the library. ./blip2 is a copy of the flavour that was made last; sanitizer builds stay under build/.

all: $(if $(SAN),$(BUILD)/blip2,blip2 $(if $(USE_CUDA),blip2_cuda.so)) lib

lib: $(BUILD)/libblip2.a $(BUILD)/libblip2.so

blip2: $(BUILD)/blip2 FORCE
	@cmp -s $< $@ || { cp $< $@.new && mv -f $@.new $@; }
	@$(if $(USE_CUDA),,rm -f blip2_cuda.so $(BUILD)/blip2_cuda.so)     # one of another time would be loaded

$(BUILD)/blip2: $(PROGRAM) $(BUILD)/libblip2.a
	$(LINK)

# One object in which all names but those of libblip2.h are local, so that they clash with nobody's.
$(BUILD)/libblip2.a: $(LIBRARY)
	$(call SAY,lib )$(LD) -r -o $(BUILD)/libblip2_all.o $^ && \
	$(OBJCOPY) --localize-hidden $(BUILD)/libblip2_all.o && rm -f $@ && $(AR) rcs $@ $(BUILD)/libblip2_all.o

$(BUILD)/libblip2.so: $(LIBRARY)
	$(call SAY,lib )$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libblip2.so.$(ABI) -o $@.$(ABI) $^ $(LIBS) && \
	ln -sf libblip2.so.$(ABI) $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	$(COMPILE)

$(BUILD)/test/%.o: test/%.c $(BUILD)/flags
	$(COMPILE)

# Changes only when the command lines do; then it also prints what they are made of.
$(BUILD)/flags: FORCE
	@echo '$(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(PROGRAM_LIBS) $(LIBS)' >$@.new; \
	if cmp -s $@.new $@; then rm $@.new; else $(MAKE) --no-print-directory list && mv $@.new $@; fi

yes_no = $(if $(1),  found    ,  MISSING  )
list:
	@echo 'compiler$(call yes_no,$(FOUND_COMPILER))$(or $(FOUND_COMPILER),no "$(CC)" that works: "make deps" installs one)'
ifneq ($(FOUND_COMPILER),)
	@echo 'zlib    $(call yes_no,$(FOUND_ZLIB))$(if $(FOUND_ZLIB),,needed for weight files: "make deps" installs it)'
	@echo 'stb     $(call yes_no,$(FOUND_STB))$(if $(FOUND_STB),,needed for PNG: "make deps" installs it)'
	@echo 'jpeg    $(if $(NO_JPEG),  left out ,$(call yes_no,$(FOUND_JPEG)))$(or $(USE_JPEG),stb_image: a little off)'
	@echo 'webp    $(if $(NO_WEBP),  left out ,$(call yes_no,$(FOUND_WEBP)))$(if $(USE_WEBP),,no WebP images)'
	@echo 'libedit $(if $(NO_EDIT),  left out ,$(call yes_no,$(FOUND_EDIT)))$(if $(USE_EDIT),,no line editing in --chat)'
	@echo 'nvcc    $(if $(filter 0,$(CUDA)),  left out ,$(call yes_no,$(NVCC)))$(or $(and $(USE_CUDA),$(NVCC)),\
	    no CUDA backend)'
endif
	@$(if $(and $(FOUND_COMPILER),$(FOUND_ZLIB),$(FOUND_STB)),true,exit 1)

# ---------------------------------------------------------------------------------------------------------
# Tests: a program for each test/test_NAME.c, linked with all of blip2 but its main, and each test/test_NAME.sh.

TEST_PROGRAMS := $(patsubst test/%.c,$(BUILD)/%,$(sort $(wildcard test/test_*.c)))
TEST_SCRIPTS := $(sort $(wildcard test/test_*.sh))
TOOLS := $(patsubst test/%.c,$(BUILD)/%,$(wildcard test/compare_dumps.c))

$(BUILD)/test_%: $(BUILD)/test/test_%.o $(patsubst test/%.c,$(BUILD)/test/%.o,$(wildcard test/fixture.c)) $(PARTS)
	$(LINK)

# The inner loops for every x86-64 processor with each instruction replaced by plain C.
TEST_PROGRAMS += $(BUILD)/test_matmul_twins

$(BUILD)/test/%_twins.o: %.c $(BUILD)/flags
	$(COMPILE) -DMATMUL_TWINS

$(BUILD)/test_matmul_twins: $(BUILD)/test/test_matmul.o $(BUILD)/test/matmul_twins.o \
                            $(BUILD)/test/matmul_narrow_twins.o $(BUILD)/threads.o
	$(LINK)

$(BUILD)/compare_dumps: $(BUILD)/test/compare_dumps.o
	$(LINK)

# Times a backend (dev/bench_gpu.py); in the folder of $(BUILD)/blip2_cuda.so, where it is looked for.
$(BUILD)/bench_backend: dev/bench_backend.c $(PARTS) $(BUILD)/flags
	$(call SAY,cc  )$(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $< $(PARTS) $(PROGRAM_LIBS) $(LIBS)

# Calls that fail on purpose, for LD_PRELOAD (test_faults.sh).
$(BUILD)/faults.so: test/faults.c $(BUILD)/flags
	$(call SAY,lib )$(CC) -std=c11 -D_GNU_SOURCE -O1 -Wall -Wextra -Wshadow -Wpedantic -shared -fPIC -o $@ $< -ldl

# TESTS='image cli' makes and runs only test_image.c and test_cli.sh, WITHOUT='matmul_twins' all but that one.
ALL_TESTS := $(TEST_PROGRAMS) $(TEST_SCRIPTS)
no_such = $(filter-out $(patsubst test_%,%,$(basename $(notdir $(ALL_TESTS)))),$(TESTS) $(WITHOUT))
$(if $(no_such),$(error no test of that name: $(no_such)))
TEST_PROGRAMS := $(filter $(or $(TESTS:%=$(BUILD)/test_%),%),$(TEST_PROGRAMS))
TEST_PROGRAMS := $(filter-out $(WITHOUT:%=$(BUILD)/test_%),$(TEST_PROGRAMS))
TEST_SCRIPTS := $(filter $(or $(TESTS:%=test/test_%.sh),%),$(TEST_SCRIPTS))
TEST_SCRIPTS := $(filter-out $(WITHOUT:%=test/test_%.sh),$(TEST_SCRIPTS))

# The simulated backend of test_device.sh only once, not in every flavour.
SIMULATED := $(if $(or $(SAN),$(FLAVOUR)),,$(if $(wildcard $(CUDA_INCLUDE)/cublasLt.h),$(BUILD)/cuda_sim/blip2_cuda.so))

programs: all $(TEST_PROGRAMS) $(TOOLS) $(if $(SAN),,$(BUILD)/faults.so) $(SIMULATED)

test: programs
	@SAN=$(SAN) sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps $(TEST_PROGRAMS) $(TEST_SCRIPTS)

# Fuzzing: a program for each test/fuzz/fuzz_NAME.c, run by test/fuzz/run.sh for FUZZ_SECONDS in all. libFuzzer is
# part of clang; without it this is a skip.

FUZZ_SECONDS ?= 60
FUZZ_IMAGES := gif bmp pnm
FUZZ_TARGETS := $(patsubst test/fuzz/fuzz_%.c,%,$(sort $(wildcard test/fuzz/fuzz_*.c)))
FUZZ_TARGETS := $(FUZZ_IMAGES) $(filter-out image,$(FUZZ_TARGETS))

fuzz:
	@if echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | \
	    clang -x c -fsanitize=fuzzer,address -o /dev/null - 2>/dev/null; then \
	    $(MAKE) --no-print-directory CC=clang FLAVOUR=fuzz FUZZ=1 fuzz_run; \
	else echo 'SKIP no clang with libFuzzer here'; echo '0 passed, 0 failed, 1 skipped'; fi

ifdef FUZZ
# Clang takes minutes for the kernels with sanitizers in them; the tests under SAN=1 look after those.
$(BUILD)/matmul.o $(BUILD)/matmul_narrow.o: private FLAGS := \
        $(filter-out $(SANITIZE) -fsanitize=fuzzer-no-link,$(FLAGS))
endif

fuzz_run: $(FUZZ_TARGETS:%=$(BUILD)/fuzz_%) $(BUILD)/make_seeds
	@sh test/fuzz/run.sh $(BUILD) $(FUZZ_SECONDS) $(FUZZ_TARGETS)

$(BUILD)/test/fuzz_%.o: test/fuzz/fuzz_%.c $(BUILD)/flags
	$(COMPILE)

$(FUZZ_IMAGES:%=$(BUILD)/test/fuzz_%.o): $(BUILD)/test/fuzz_%.o: test/fuzz/fuzz_image.c $(BUILD)/flags
	$(COMPILE) -DFUZZ_FORMAT=$*

$(BUILD)/test/make_seeds.o: test/fuzz/make_seeds.c $(BUILD)/flags
	$(COMPILE)

$(BUILD)/make_seeds: $(BUILD)/test/make_seeds.o $(BUILD)/test/fixture.o $(PARTS)
	$(LINK)

# its picture needs no child process
$(BUILD)/fuzz_chat: private LDFLAGS += -Wl,--wrap=blip2_image_read

$(BUILD)/fuzz_%: $(BUILD)/test/fuzz_%.o $(BUILD)/test/fixture.o $(PARTS)
	$(LINK) -fsanitize=fuzzer

# The CUDA code on the CPU (doc/cuda-sim.md). Needs g++ and the toolkit's headers, no nvcc and no GPU.

SIM := $(BUILD)/cuda_sim
SIM_CXX := g++ -std=c++17 -g -Wall -Wextra -DCUDA_SIM -Itest/cuda_sim -I. -isystem $(CUDA_INCLUDE) -MMD -MP
SIM_KERNELS := -O1 -Wno-unknown-pragmas -fsanitize=thread,undefined -fno-sanitize=vptr -fno-sanitize-recover=all \
               --param tsan-instrument-func-entry-exit=0 --param tsan-distinguish-volatile=1
SIM_OBJECTS := $(patsubst test/cuda_sim/%.cpp,$(SIM)/%.o,$(wildcard test/cuda_sim/cuda_sim*.cpp))

# PIC, since they go into a shared object too. Made anew when the command line changes, as $(BUILD)/flags.
SIM_SELF := -O2 -fPIC

$(SIM)/flags: FORCE
	@mkdir -p $(SIM)
	@echo '$(SIM_CXX) $(SIM_SELF)' >$@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(SIM_OBJECTS): $(SIM)/%.o: test/cuda_sim/%.cpp $(SIM)/flags
	$(call SAY,g++ )$(SIM_CXX) $(SIM_SELF) -c -o $@ $<

$(SIM)/test_sim.o: test/cuda_sim/test_sim.cpp
	@mkdir -p $(SIM)
	$(call SAY,g++ )$(SIM_CXX) $(SIM_KERNELS) -x c++ -c -o $@ $<

$(SIM)/test_sim: $(SIM)/test_sim.o $(SIM_OBJECTS)
	$(call SAY,link)g++ -fsanitize=address,undefined -o $@ $^ -ldl

$(SIM)/test_cuda.o $(SIM)/test_cuda_choose.o: $(SIM)/%.o: test/%.cu
	@mkdir -p $(SIM)
	$(call SAY,g++ )$(SIM_CXX) $(SIM_KERNELS) -x c++ -c -o $@ $<

# the CPU's logits are read where it chooses
WRAP_test_cuda := -Wl,--wrap=search_step

$(SIM)/test_cuda $(SIM)/test_cuda_choose: $(SIM)/%: $(SIM)/%.o $(SIM_OBJECTS) $(BUILD)/test/fixture.o $(PARTS)
	$(call SAY,link)g++ -rdynamic -fsanitize=address,undefined $(WRAP_$*) -o $@ $^ $(PROGRAM_LIBS) $(LIBS)

# The backend in the simulator as a shared object, for test_device.sh: machines whose GPU will not do.
DOUBLED := cudaDriverGetVersion cudaGetDeviceCount cudaSetDevice cudaMemGetInfo cudaMalloc

$(SIM)/blip2.o: blip2.cu
	@mkdir -p $(SIM)
	$(call SAY,g++ )$(SIM_CXX) $(SIM_KERNELS) -fPIC -x c++ -c -o $@ $<

$(SIM)/cuda_double.o: test/cuda_double.c $(BUILD)/flags
	@mkdir -p $(SIM)
	$(call SAY,cc  )$(CC) $(FLAGS) -isystem $(CUDA_INCLUDE) -c -o $@ $<

$(SIM)/blip2_cuda.so: $(SIM)/blip2.o $(SIM)/cuda_double.o $(SIM_OBJECTS) \
                      $(patsubst %,$(BUILD)/%.o,common generate generate_process threads)
	$(call SAY,link)g++ -shared -fsanitize=undefined -o $@ $^ -Wl,-Bsymbolic,--defsym=__executable_start=0 \
	    $(DOUBLED:%=-Wl,--wrap=%) -ldl

test-cuda-sim: $(SIM)/test_sim $(SIM)/test_cuda $(SIM)/test_cuda_choose
	@VERBOSE=1 TEST_SIM=$< TEST_CUDA=$(SIM)/test_cuda sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps \
	    $(SIM)/test_cuda:fixture $(SIM)/test_cuda:-fixture $(SIM)/test_sim $(SIM)/test_cuda_choose \
	    test/cuda_sim/other_orders.sh test/cuda_sim/fragments.py

# The same tests against CUDA code with mistakes in it (test/cuda_sim/plant_bugs.py); BUGS='--sample 5' for a few.
$(SIM)/bugs/test_cuda.o: $(SIM)/test_cuda.o test/cuda_sim/plant_bugs.py
	$(call SAY,g++ )python3 test/cuda_sim/plant_bugs.py compile $(SIM) && \
	    $(SIM_CXX) $(SIM_KERNELS) -Itest -x c++ -c -o $@ $(SIM)/bugs/test/test_cuda.cu

$(SIM)/bugs/test_cuda: $(SIM)/bugs/test_cuda.o $(SIM_OBJECTS) $(BUILD)/test/fixture.o $(PARTS)
	$(call SAY,link)g++ -fsanitize=address,undefined $(WRAP_test_cuda) -o $@ $^ $(PROGRAM_LIBS) $(LIBS)

test-cuda-bugs: $(SIM)/bugs/test_cuda
	@python3 test/cuda_sim/plant_bugs.py run $(SIM) $(BUGS)

# The CUDA backend, a shared object beside the program, which loads it when it runs (device.c). It has its own copies of
# the C files that it calls. One object for sm_80, for sm_90, and as PTX for what comes after them: -t 2 compiles them
# side by side. An error of nvcc is an error of make; CUDA=0 goes without.

CUDA_ARCHS := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
# nvcc does not know -pthread
NVCC_LIBS = -lcublasLt -Xlinker -rpath=$(abspath $(dir $(NVCC))../lib64) $(PROGRAM_LIBS) $(LIBS:-pthread=-lpthread)
NVCC_FLAGS := -std=c++17 -O3 -t 2 $(CUDA_ARCHS) -Xcompiler -Wall,-Wextra,-fPIC
CUDA_SOURCES := blip2.cu $(wildcard cuda_*.h cuda_*.cuh) blip2.h common.h generate.h generate_parts.h

$(BUILD)/cuda/%.o: %.c $(BUILD)/flags
	@mkdir -p $(BUILD)/cuda
	$(COMPILE) -fPIC

# Made anew when its command line changes, as $(BUILD)/flags.
$(BUILD)/cuda/flags: FORCE
	@mkdir -p $(BUILD)/cuda
	@echo '$(NVCC) $(NVCC_FLAGS)' >$@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BUILD)/cuda/blip2.o: $(CUDA_SOURCES) $(BUILD)/cuda/flags
	@$(if $(NVCC),,echo 'no nvcc here, which CUDA=1 asks for: install the CUDA toolkit, or say where: NVCC=...'; exit 1)
	$(call SAY,nvcc)$(NVCC) $(NVCC_FLAGS) -c -o $@ $<

$(BUILD)/blip2_cuda.so: $(BUILD)/cuda/blip2.o $(patsubst %,$(BUILD)/cuda/%.o,common generate generate_process threads)
	$(call SAY,link)$(NVCC) -shared -cudart static -o $@ $^ -Xlinker -Bsymbolic -lcublasLt \
	    -Xlinker -rpath=$(abspath $(dir $(NVCC))../lib64)

blip2_cuda.so: $(BUILD)/blip2_cuda.so
	@cmp -s $< $@ || { cp $< $@.new && mv -f $@.new $@; }

$(BUILD)/test_cuda $(BUILD)/test_cuda_choose: $(BUILD)/%: test/%.cu $(CUDA_SOURCES) $(wildcard test/cuda_*.h) \
                                                   $(BUILD)/test/fixture.o $(PARTS)
	$(call SAY,nvcc)$(NVCC) $(NVCC_FLAGS) -o $@ $< $(BUILD)/test/fixture.o $(PARTS) \
	    $(patsubst -Wl$(comma)%,-Xlinker %,$(WRAP_$*)) $(NVCC_LIBS)

# What nvcc made of the kernels, against dev/cuda/report.baseline. Without nvcc and cuobjdump a skip. The tests for a card
# are made along: nothing else compiles them where there is none.
PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)
cuda-report: $(if $(NVCC),$(BUILD)/cuda/blip2.o $(BUILD)/test_cuda $(BUILD)/test_cuda_choose)
	@NVCC='$(NVCC)' $(PYTHON) dev/cuda/report --self-test --check $(BUILD)/cuda/blip2.o

test-cuda: $(BUILD)/test_cuda $(BUILD)/test_cuda_choose $(BUILD)/blip2 $(BUILD)/blip2_cuda.so
	@ALL_SKIPPED=ok VERBOSE=1 TEST_JOBS=1 sh test/run.sh $(BUILD)/blip2 $(BUILD)/compare_dumps $(BUILD)/test_cuda \
	    $(BUILD)/test_cuda_choose test/cuda_demo.sh

# The launchers and the smallest models (everything takes hours) under the toolkit's own checkers.
SANITIZED := dense patches norm activate embed gather kv_store attention past fixture
test-cuda-sanitize: $(BUILD)/test_cuda
	compute-sanitizer --tool memcheck --leak-check full --error-exitcode 1 $< $(SANITIZED)
	compute-sanitizer --tool racecheck --racecheck-report all --error-exitcode 1 $< $(SANITIZED)
	compute-sanitizer --tool synccheck --error-exitcode 1 $< $(SANITIZED)

include dev/cuda/ladder.mk

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

# The commands of demo/examples.txt with their answers, which must be those that the file has.
demo: all
	@echo
	@SHOW=1 sh test/test_demo.sh ./blip2

# The manual page is committed, so that it can be read without building; a test says when it is out of date.
doc/blip2.1: $(BUILD)/blip2
	$(BUILD)/blip2 --man >$@.new && mv $@.new $@

# What `make install` puts below DESTDIR and PREFIX, and `make uninstall` takes away.
INSTALLED := $(addprefix $(DESTDIR)$(PREFIX)/,bin/blip2 include/libblip2.h lib/libblip2.a lib/libblip2.so.$(ABI) \
               lib/libblip2.so lib/blip2/blip2_cuda.so lib/pkgconfig/libblip2.pc share/man/man1/blip2.1 \
               share/blip2/demo.bin share/bash-completion/completions/blip2 share/zsh/site-functions/_blip2 \
               share/fish/vendor_completions.d/blip2.fish)
# the file of that list whose name ends so
PLACE = $(filter %/$(1),$(INSTALLED))

install: all
	install -d $(sort $(dir $(INSTALLED)))
	install -m 755 $(BUILD)/blip2 $(call PLACE,bin/blip2)
	install -m 644 libblip2.h $(call PLACE,libblip2.h)
	install -m 644 $(BUILD)/libblip2.a $(call PLACE,libblip2.a)
	install -m 755 $(BUILD)/libblip2.so.$(ABI) $(call PLACE,libblip2.so.$(ABI))
	ln -sf libblip2.so.$(ABI) $(call PLACE,libblip2.so)
	printf 'prefix=%s\n\nName: libblip2\nDescription: BLIP-2: images to text\nVersion: %s\n%s\n%s\n%s\n' '$(PREFIX)' \
	    "$$(sed -n 's/^#define BLIP2_VERSION "\(.*\)".*/\1/p' libblip2.h)" 'Cflags: -I$${prefix}/include' \
	    'Libs: -L$${prefix}/lib -lblip2' 'Libs.private: $(LIBS)' >$(call PLACE,libblip2.pc)
	install -m 644 doc/blip2.1 $(call PLACE,blip2.1)
	$(BUILD)/blip2 --completion bash >$(call PLACE,completions/blip2)
	$(BUILD)/blip2 --completion zsh >$(call PLACE,_blip2)
	$(BUILD)/blip2 --completion fish >$(call PLACE,blip2.fish)
	$(if $(USE_CUDA),install -m 755 blip2_cuda.so $(call PLACE,blip2_cuda.so))
	$(if $(wildcard demo/demo.bin),install -m 644 demo/demo.bin $(call PLACE,demo.bin))

uninstall:
	rm -f $(INSTALLED)
	-rmdir $(dir $(call PLACE,demo.bin) $(call PLACE,blip2_cuda.so))

clean:
	rm -rf build blip2 blip2_cuda.so

help:
	@echo 'make            ./blip2 from what is installed'
	@echo 'make lib        build/libblip2.a and build/libblip2.so (also part of make)'
	@echo 'make deps       installs what is missing (apt-get; dnf and Homebrew untested)'
	@echo 'make demo       a small trained model captions and answers; make deps demo does both'
	@echo 'make test       all tests that need no Python; make programs only builds them'
	@echo '                (TESTS="image cli": only those, WITHOUT="matmul_twins": all but that one)'
	@echo 'make test-cuda      the CUDA backend on a GPU; without one a skip, or with REQUIRE_GPU=1 a failure'
	@echo 'make test-cuda-sanitize  its launchers and small models under compute-sanitizer'
	@echo 'make test-cuda-sim  the CUDA code on the CPU, under a simulator that finds mistakes'
	@echo 'make test-cuda-bugs  the same with mistakes planted in the code, each of which must be found'
	@echo 'make cuda-report    registers, spills and wide loads of every CUDA kernel, against the recorded ones'
	@echo 'make ladder          every operation from naive to shipped, checked and timed on a GPU (dev/cuda/README.md)'
	@echo 'make test-ladder-sim the same on small shapes in the simulator'
	@echo 'make parity     compares every stage with PyTorch (installs it into .venv, 5 GB)'
	@echo 'make fuzz       hostile input for FUZZ_SECONDS=$(FUZZ_SECONDS) in all, under sanitizers (needs clang)'
	@echo 'make list       what was found on this machine'
	@echo 'make install    to PREFIX=$(PREFIX), below DESTDIR'
	@echo 'make uninstall  takes that away again'
	@echo 'make clean      removes build/ and ./blip2'
	@echo
	@echo 'CC=clang  CFLAGS=...  LDFLAGS=...  compiler and additional flags'
	@echo 'SAN=1                 with address and undefined-behaviour sanitizers, under build/san'
	@echo 'WERROR=1              warnings are errors'
	@echo 'CUDA=0                without blip2_cuda.so, the CUDA backend, which is made where nvcc is (NVCC=path)'
	@echo 'NO_JPEG=1  NO_WEBP=1  NO_EDIT=1  leave it out'
	@echo 'FLAVOUR=name          build in build/name'
	@echo 'V=1                   show the commands'
	@echo 'PARITY_PYTHON=python  use this interpreter for make parity'

-include $(wildcard $(BUILD)/*.d $(BUILD)/test/*.d $(SIM)/*.d)
endif
