# dev/cuda/ladder.mk: the ladder (dev/cuda/README.md), part of the top Makefile.
#
# `make ladder` builds build/ladder/OPERATION for the card with nvcc; `make test-ladder-sim` compiles the same files
# with g++ and checks every version on odd small shapes in the simulator.

.PHONY: ladder test-ladder-sim

LADDER := layernorm dense matvec vit_attention decode_attention patch_embedding \
          sampling beam_step
LADDER_COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# Each operation calls one launcher of a header that has several.
LADDER_NVCC := $(NVCC_FLAGS) -I. -DLADDER_COMMIT='"$(LADDER_COMMIT)"' -Xcompiler -Wno-unused-function -diag-suppress 177
# blip2.c is part of cpu.c, generate.c of cpu_choose.c
CPU_LAYERS := $(BUILD)/ladder/cpu.o $(BUILD)/ladder/cpu_choose.o
LADDER_PARTS := $(filter-out $(BUILD)/blip2.o $(BUILD)/generate.o,$(PARTS)) $(CPU_LAYERS)
LADDER_HEADERS := dev/cuda/ladder.h dev/cuda/cpu.h cuda_common.h $(wildcard cuda_*.cuh)

ladder: $(LADDER:%=$(BUILD)/ladder/%)

$(CPU_LAYERS): $(BUILD)/ladder/%.o: dev/cuda/%.c $(BUILD)/flags
	@mkdir -p $(BUILD)/ladder
	$(COMPILE)

$(BUILD)/ladder/%.o: dev/cuda/%.cu $(LADDER_HEADERS)
	@mkdir -p $(BUILD)/ladder
	$(call SAY,nvcc)$(NVCC) $(LADDER_NVCC) -c -o $@ $<

$(LADDER:%=$(BUILD)/ladder/%): %: %.o $(BUILD)/ladder/ladder.o $(LADDER_PARTS)
	$(call SAY,link)$(NVCC) -o $@ $^ -lcublasLt $(PROGRAM_LIBS) $(LIBS)

$(SIM)/ladder/%.o: dev/cuda/%.cu
	@mkdir -p $(SIM)/ladder
	$(call SAY,g++ )$(SIM_CXX) -Wno-unused-function $(SIM_KERNELS) -x c++ -c -o $@ $<

$(LADDER:%=$(SIM)/ladder/%): %: %.o $(SIM)/ladder/ladder.o $(SIM_OBJECTS) $(LADDER_PARTS)
	$(call SAY,link)g++ -fsanitize=address,undefined -o $@ $^ $(PROGRAM_LIBS) $(LIBS)

test-ladder-sim: $(LADDER:%=$(SIM)/ladder/%)
	@sh dev/cuda/test_sim.sh $^

-include $(wildcard $(BUILD)/ladder/*.d $(SIM)/ladder/*.d)
