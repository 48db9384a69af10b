# dev/cuda/ladder.mk: the ladder (dev/cuda/README.md), part of the top Makefile.
#
# `make ladder` builds build/ladder/OPERATION for the card with nvcc; `make test-ladder-sim` compiles the same files
# with g++ and checks every version on odd small shapes in the simulator.

.PHONY: ladder test-ladder-sim

LADDER := layernorm dense matvec vit_attention decode_attention patch_embedding \
          sampling beam_step
LADDER_FRAME := ladder ladder_time ladder_print
# COMMIT=... where there is no git to ask
LADDER_COMMIT := $(or $(COMMIT),$(shell git describe --always --dirty 2>/dev/null),unknown)
# Each operation calls one launcher of a header that has several.
LADDER_NVCC := $(NVCC_FLAGS) -I. -DLADDER_COMMIT='"$(LADDER_COMMIT)"' -Xcompiler -Wno-unused-function -diag-suppress 177
# blip2.c is part of cpu.c
LADDER_PARTS := $(filter-out $(BUILD)/blip2.o,$(PARTS)) $(BUILD)/ladder/cpu.o
LADDER_HEADERS := $(wildcard dev/cuda/*.h cuda_*.h cuda_*.cuh) generate.h generate_parts.h

ladder: $(LADDER:%=$(BUILD)/ladder/%)

$(BUILD)/ladder/cpu.o: $(BUILD)/ladder/%.o: dev/cuda/%.c $(BUILD)/flags
	@mkdir -p $(BUILD)/ladder
	$(COMPILE)

$(BUILD)/ladder/%.o: dev/cuda/%.cu $(LADDER_HEADERS)
	@mkdir -p $(BUILD)/ladder
	$(call SAY,nvcc)$(NVCC) $(LADDER_NVCC) -c -o $@ $<

$(LADDER:%=$(BUILD)/ladder/%): %: %.o $(LADDER_FRAME:%=$(BUILD)/ladder/%.o) $(LADDER_PARTS)
	$(call SAY,link)$(NVCC) -o $@ $^ $(NVCC_LIBS)

$(SIM)/ladder/%.o: dev/cuda/%.cu
	@mkdir -p $(SIM)/ladder
	$(call SAY,g++ )$(SIM_CXX) -Wno-unused-function $(SIM_KERNELS) -x c++ -c -o $@ $<

$(LADDER:%=$(SIM)/ladder/%): %: %.o $(LADDER_FRAME:%=$(SIM)/ladder/%.o) $(SIM_OBJECTS) $(LADDER_PARTS)
	$(call SAY,link)g++ -fsanitize=address,undefined -o $@ $^ $(PROGRAM_LIBS) $(LIBS)

test-ladder-sim: $(LADDER:%=$(SIM)/ladder/%)
	@sh dev/cuda/test_sim.sh $^

-include $(wildcard $(BUILD)/ladder/*.d $(SIM)/ladder/*.d)
