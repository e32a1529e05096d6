# surgr1: builds what this machine can build, and says what it found.
#
#   make              the program, ./surgr1 (no nvcc, no GPU needed)
#   make test         every test; SAN=1 under AddressSanitizer and UndefinedBehaviorSanitizer
#   make help         all targets; V=1 shows every command
#
# Flags that teach:
#   -ffp-contract=off     a*b+c means what it says, so no two compilers differ; FMA is written as such where it is wanted
#   never -ffast-math     it would delete the NaN checks (a test of the shipped program looks for that)
#   -fno-strict-aliasing  bytes of files are looked at as numbers
#   -Werror               a warning is a question that someone has to answer
#   -Wconversion          only in files that read what strangers wrote: there a silent narrowing is a way in

CC      ?= gcc
CXX     ?= g++
NVCC    ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
SAN     ?=
EMU     ?=
CUDA    ?=
FUZZ    ?=
ROOT    ?= ../shared
DEVICE  ?= cpu
THREADS ?= 0
COMMA   := ,
MAKEFLAGS += --no-builtin-rules --no-print-directory
Q       := $(if $(V),,@)
.DEFAULT_GOAL := all

# One folder of objects per kind of build, so that switching between them rebuilds nothing.
BUILD   := build$(if $(SAN),-san)$(if $(EMU),-emu)$(if $(CUDA),-cuda)$(if $(FUZZ),-fuzz)
PROGRAM := $(BUILD)/surgr1
STB     ?= $(firstword $(wildcard /usr/include/stb/stb_image.h /usr/local/include/stb/stb_image.h))

SANITIZE := $(if $(SAN),-fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DSURGR1_DEBUG)
INSTRUMENT := $(if $(FUZZ),-fsanitize=fuzzer-no-link -w)
SHARED   := -g $(INSTRUMENT) $(if $(SAN),-O1 $(SANITIZE),-O2 -D_FORTIFY_SOURCE=2) -fstack-protector-strong -fPIE \
            -ffp-contract=off -fno-strict-aliasing -pthread -MMD -MP $(if $(EMU)$(CUDA),-DSURGR1_CUDA)
CFLAGS   := -std=gnu11 $(SHARED) -Wall -Wextra -Wshadow -Wvla -Wformat=2 -Werror
CXXFLAGS := -std=c++17 $(SHARED) -Wall -Wextra -Werror
LDFLAGS  := -pie -pthread -Wl,-z,relro,-z,now $(SANITIZE)
LDLIBS   := -lm

# What the CUDA toolkit has. cuBLASLt is used where its header and library are; CUBLAS= builds without.
CUDA_HOME := $(if $(NVCC),$(patsubst %/bin/nvcc,%,$(realpath $(NVCC))))
CUDA_DIRS := $(if $(CUDA_HOME),$(wildcard $(addprefix $(CUDA_HOME)/,lib64 lib targets/x86_64-linux/lib) /usr/lib/x86_64-linux-gnu))
CUBLASLT  := $(firstword $(wildcard $(addsuffix /libcublasLt.so,$(CUDA_DIRS))))
CUBLAS    ?= $(if $(wildcard $(CUDA_HOME)/include/cublasLt.h /usr/include/cublasLt.h),$(CUBLASLT))
CUDA_LINK := $(if $(CUDA),$(CUDA_DIRS:%=-L%) -lcudart_static -ldl -lrt $(if $(CUBLAS),-lcublasLt -Wl$(COMMA)-rpath$(COMMA)$(dir $(CUBLASLT))))

# The library is everything but the program itself; the archive lets each test take only what it needs.
LIB_SRC := $(filter-out surgr1.c,$(wildcard *.c io/*.c data/*.c surgery/*.c))
LIB     := $(BUILD)/libsurgr1.a
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
PROGRAM_OBJ := $(patsubst %.c,$(BUILD)/%.o,surgr1.c $(wildcard commands/*.c))
EMULATED := $(BUILD)/kernels_emulated.o
KERNELS := $(if $(CUDA),$(BUILD)/kernels.o,$(EMULATED))
PROBES  := $(if $(CUDA),$(BUILD)/test/gpu_probe.o) $(BUILD)/test/gpu_probe_emulated.o
STRICT  := $(patsubst %.c,$(BUILD)/%.o,base.c tokenizer.c tokenizer_train.c $(wildcard io/*.c data/*.c surgery/*.c))

TESTS   := $(patsubst %.c,$(BUILD)/%,$(filter-out test/test_oracle.c,$(wildcard test/test_*.c))) \
           $(if $(CUDA),,$(patsubst %.cpp,$(BUILD)/%,$(wildcard test/test_*.cpp)))
BENCHES := $(patsubst %.c,$(BUILD)/%,$(wildcard bench/*.c))
FUZZERS := $(patsubst %.c,$(BUILD)/%,$(wildcard test/fuzz_*.c))
ORACLE  := $(BUILD)/test/test_oracle

# ----------------------------------------------------------------------------------------------------------- program
.PHONY: all
all: found $(PROGRAM)
	@$(if $(SAN)$(EMU),echo "program: $(PROGRAM)",cp -f $(PROGRAM) surgr1 && echo "program: ./surgr1")

.PHONY: found
found:
	@echo "compiler: $$($(CC) --version | head -n 1)"
	@echo "stb_image: $(if $(STB),$(STB),not found, needed: run make deps)"
	@echo "nvcc: $(if $(NVCC),$(NVCC) (make cuda builds with it),not found: no CUDA here; make EMU=1 runs the kernels on the host)"
	@echo "clang: $$(command -v clang || echo 'not found: no fuzzing here')"

$(PROGRAM): $(PROGRAM_OBJ) $(if $(EMU)$(CUDA),$(KERNELS)) $(LIB)
	@echo "link  $@"
	$(Q)$(if $(EMU)$(CUDA),$(CXX),$(CC)) $(LDFLAGS) $^ $(CUDA_LINK) $(LDLIBS) -o $@

$(LIB): $(LIB_OBJ)
	@rm -f $@
	$(Q)ar rcs $@ $^

$(BUILD)/%.o: %.c | stb
	@mkdir -p $(@D)
	@echo "cc    $<"
	$(Q)$(CC) $(CFLAGS) $(CPPFLAGS) -c $< -o $@
$(STRICT): CFLAGS += -Wconversion -Wno-sign-conversion
$(BUILD)/cpu.o: CFLAGS += -Wno-psabi # vectors never cross a call that is not inlined

# The same kernels, three ways: as C++ against test/cuda_emu.h (every test run), and by nvcc (make cuda).
$(EMULATED): kernels.cu
	@mkdir -p $(@D)
	@echo "c++   $< (against test/cuda_emu.h)"
	$(Q)$(CXX) $(CXXFLAGS) -Wno-unknown-pragmas $(CPPFLAGS) -x c++ -c $< -o $@
NVCCFLAGS := -std=c++17 -O3 -lineinfo -I. -Xcompiler -fPIE,-Wall,-Wextra -Xptxas -v $(if $(CUBLAS),-DSURGR1_CUBLAS)
GENCODE   := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
$(BUILD)/kernels.o: kernels.cu ops.h base.h $(BUILD)/cublas-$(if $(CUBLAS),yes,no)
$(BUILD)/test/gpu_probe.o: test/gpu_probe.cu test/gpu_probe.h kernels.cu ops.h base.h
$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	@echo "nvcc  $<"
	$(Q)$(NVCC) $(NVCCFLAGS) $(GENCODE) -c $< -o $@ 2>$@.ptxas || { cat $@.ptxas >&2; exit 1; }
	@grep -vE 'ptxas info|bytes stack frame' $@.ptxas >&2 || true
$(BUILD)/cublas-%: # built with cuBLASLt or without: a change of mind rebuilds the kernels
	@mkdir -p $(@D); rm -f $(BUILD)/cublas-*; touch $@
$(BUILD)/test/gpu_probe_emulated.o: test/gpu_probe.cu
	@mkdir -p $(@D)
	@echo "c++   $< (against test/cuda_emu.h)"
	$(Q)$(CXX) $(CXXFLAGS) -Wno-unknown-pragmas $(CPPFLAGS) -Dcuda_emu_schedule=probe_schedule -x c++ -c $< -o $@

.PHONY: stb
stb:
	@test -n "$(STB)" || { echo "stb_image.h is not there. Run: make deps   (or make STB=path/to/stb/stb_image.h)"; exit 1; }
CPPFLAGS += $(if $(STB),$(if $(filter /usr/%,$(STB)),,-I$(dir $(STB))..))

.PHONY: cuda
cuda: nvcc
	@$(MAKE) CUDA=1
	@sh test/gpu_resources.sh build-cuda/kernels.o.ptxas || true
	@echo "cuBLASLt: $(if $(CUBLAS),$(CUBLASLT),not built in: $(if $(CUBLASLT),no cublasLt.h beside nvcc or CUBLAS= given,no libcublasLt.so beside nvcc))"
.PHONY: nvcc
nvcc:
	@test -n "$(NVCC)" || { echo "nvcc is not there. Install the CUDA toolkit, or use make EMU=1"; exit 1; }

# What apt must install. sudo only where it is needed.
.PHONY: deps
deps:
	@sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	$$sudo apt-get update -q && $$sudo apt-get install -q -y --no-install-recommends gcc g++ libc6-dev make libstb-dev

# ------------------------------------------------------------------------------------------------------------- tests
# Every test links the library and the emulated kernels, and takes from them what it names.
$(BUILD)/test/% $(BUILD)/bench/%: $(BUILD)/test/%.o
$(BUILD)/test/test_%: $(BUILD)/test/test_%.o $(KERNELS) $(LIB)
	$(Q)$(CXX) $(LDFLAGS) $< $(if $(filter %cuda_emu,$@),,$(KERNELS)) $(LIB) $(CUDA_LINK) $(LDLIBS) -o $@
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(KERNELS) $(LIB)
	$(Q)$(CXX) $(LDFLAGS) $< $(KERNELS) $(LIB) $(CUDA_LINK) $(LDLIBS) -o $@
$(BUILD)/test/test_fragments $(BUILD)/test/gpu_device: $(BUILD)/test/%: $(BUILD)/test/%.o $(PROBES) $(LIB)
	$(Q)$(CXX) $(LDFLAGS) $^ $(CUDA_LINK) $(LDLIBS) -o $@
$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	@echo "c++   $<"
	$(Q)$(CXX) $(CXXFLAGS) $(CPPFLAGS) -c $< -o $@

# Whatever other people's numbers there are: the committed ones, and a folder beside the repository if there is one.
FIXTURES := $(if $(wildcard test/fixtures/oracle),test/fixtures)
# ref needs 20 s for the trajectories of that folder: they are left to cpu here, and to make test-long.
ORACLES  := $(if $(FIXTURES),$(foreach d,ref cpu,"$(ORACLE) --root $(FIXTURES) --device $(d)") \
                "$(ORACLE) --root $(FIXTURES) --device cuda") \
            $(if $(wildcard ../shared/oracle),"$(ORACLE) --root ../shared --device ref --skip /trajectory" \
                "$(ORACLE) --root ../shared --device cpu" "$(ORACLE) --root ../shared --device cuda --only models/")
PLANTED  := $(if $(FIXTURES),"sh test/test_plant.sh $(ORACLE) test/fixtures")
# The shipped program with emulated kernels: its other objects serve both, two know whether there is a device "cuda".
EMULATED_PROGRAM := $(if $(EMU)$(CUDA),$(PROGRAM),$(BUILD)/emulated/surgr1)
KNOWING  := surgr1 commands/options
$(BUILD)/emulated/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(CPPFLAGS) -DSURGR1_CUDA -c $< -o $@
$(BUILD)/emulated/surgr1: $(KNOWING:%=$(BUILD)/emulated/%.o) $(filter-out $(KNOWING:%=$(BUILD)/%.o),$(PROGRAM_OBJ)) $(EMULATED) $(LIB)
	@echo "link  $@"
	$(Q)$(CXX) $(LDFLAGS) $^ $(LDLIBS) -o $@
# A kernel that nvcc cannot compile, or that spills registers, is a failed test wherever there is an nvcc.
NVCC_LOG := $(BUILD)/test/kernels_nvcc
COMPILED := $(if $(NVCC),"$(NVCC) $(NVCCFLAGS) -arch=sm_80 -c kernels.cu -o $(NVCC_LOG).o 2>$(NVCC_LOG).txt || { cat $(NVCC_LOG).txt; exit 1; }; sh test/gpu_resources.sh $(NVCC_LOG).txt","echo no nvcc here; exit 77")
# The GPU targets where there is no GPU, and every line of the GPU benchmark at tiny sizes.
GPULESS  := "GPU_DEVICE=$(BUILD)/test/gpu_device sh test/test_gpu_targets.sh" "$(BUILD)/bench/bench_gpu --smoke"

.PHONY: test
test:
	@test -n "$(STB)" || $(MAKE) deps
	@$(MAKE) test-now
.PHONY: test-now
test-now: $(PROGRAM) $(EMULATED_PROGRAM) $(TESTS) $(ORACLE) $(BUILD)/test/gpu_device $(BUILD)/bench/bench_gpu
	@SURGR1=$(abspath $(PROGRAM)) sh test/run.sh $(BUILD) $(TESTS:%="%") $(ORACLES) $(PLANTED) "sh test/test_cli.sh" "sh test/test_report.sh" "sh test/test_recipe.sh" "sh test/test_demo.sh" \
	    "SURGR1_EMULATED=$(EMULATED_PROGRAM) sh test/test_emulated.sh" \
	    "sh test/deps_check.sh $(BUILD)" $(GPULESS) $(COMPILED)

.PHONY: test-oracle test-long test-weights deps-check bench fuzz
test-oracle: $(ORACLE)
	$(ORACLE) --root $(ROOT) --device $(DEVICE) --threads $(THREADS)
test-long: $(PROGRAM) $(ORACLE) $(TESTS)
	@SURGR1=$(abspath $(PROGRAM)) sh test/run.sh $(BUILD) "SURGR1_KILLS=240 $(BUILD)/test/test_resume random" \
	    "SURGR1_POINTS=0 $(BUILD)/test/test_crash any_system" \
	    $(foreach root,$(FIXTURES) $(wildcard $(ROOT)),$(foreach d,ref cpu,$(foreach n,1 2 7,"$(ORACLE) --root $(root) --device $(d) --threads $(n)")) \
	        "$(ORACLE) --root $(root) --device cuda")
test-weights: $(PROGRAM)
	@test -n "$(MODEL)" || { echo "say where the weights are: make test-weights MODEL=dir"; exit 2; }
	SURGR1=$(abspath $(PROGRAM)) sh test/test_weights.sh $(MODEL)
deps-check: $(LIB) $(PROGRAM_OBJ)
	sh test/deps_check.sh $(BUILD)
# make bench MODEL=dir also decodes with a checkpoint; build/bench/make_checkpoint writes one of any real size. The training
# step is compared with PyTorch where PYTHON has torch and transformers.
PYTHON ?= python3
TOKENIZER ?= $(firstword $(wildcard ../shared/tokenizer) test/fixtures/oracle/pipeline/ask/checkpoint)
bench: $(BENCHES)
	$(BUILD)/bench/bench
	$(if $(MODEL),$(BUILD)/bench/bench --model $(MODEL))
	$(BUILD)/bench/bench_tokenizer $(TOKENIZER)
	$(BUILD)/bench/make_checkpoint demo $(BUILD)/bench/demo
	$(BUILD)/bench/bench_train $(BUILD)/bench/demo --threads 1 --python $(PYTHON) --profile
	$(BUILD)/bench/bench_train $(BUILD)/bench/demo --python $(PYTHON)
	$(BUILD)/bench/bench_grpo $(BUILD)/bench/demo

# On a machine with a GPU. Everything is built first, so without one these say what links and what is missing, and fail. Tests are
# linked with the nvcc objects; they choose schedules through a weak function that only the emulator has. The oracle compares
# in fp32; tests that take the device from SURGR1_DEVICE run on it.
.PHONY: test-gpu test-gpu-memcheck test-gpu-racecheck test-gpu-initcheck test-gpu-synccheck gpu-built gpu-there gpu-now gpu-check bench-gpu bench-gpu-now
GPU_NAMED := $(patsubst %.c,$(BUILD)/%,$(shell grep -l 'ops_cuda\|gpu_fragments' $(wildcard test/test_*.c)))
GPU_RUNS  := test_grpo_run test_resume test_sft
SANITIZER := $(firstword $(shell command -v compute-sanitizer 2>/dev/null) $(wildcard $(addprefix $(CUDA_HOME)/,bin/compute-sanitizer compute-sanitizer/compute-sanitizer)))
PASSED    := ! grep -q '^0 passed' $(BUILD)/total.txt || { echo "NOTHING WAS TESTED: all of it was skipped"; exit 1; }
test-gpu: nvcc
	@$(MAKE) CUDA=1 gpu-now
test-gpu-memcheck test-gpu-racecheck test-gpu-initcheck test-gpu-synccheck: test-gpu-%: nvcc
	@$(MAKE) CUDA=1 gpu-check TOOL=$*
gpu-built: $(PROGRAM) $(TESTS) $(ORACLE) $(BENCHES) $(BUILD)/test/gpu_device
	@echo "built for sm_80 and sm_90 and linked: $(PROGRAM), $(words $(TESTS)) tests, the oracle, $(words $(BENCHES)) benchmarks; cuBLASLt: $(if $(CUBLAS),yes,no)"
gpu-there: gpu-built
	@$(BUILD)/test/gpu_device || { echo "NOTHING WAS TESTED: there is no usable GPU here (above: what CUDA says)"; exit 77; }
gpu-now: gpu-there
	@SURGR1=$(abspath $(PROGRAM)) SURGR1_DEVICE=cuda sh test/run.sh $(BUILD) $(BUILD)/test/test_fragments \
	    $(patsubst %,"%",$(filter-out %test_oracle %test_fragments,$(GPU_NAMED))) $(GPU_RUNS:%="$(BUILD)/test/%") \
	    $(foreach root,$(FIXTURES) $(wildcard $(ROOT)/oracle/..),"$(ORACLE) --root $(root) --device cuda") "sh test/test_cli.sh" \
	    $(if $(wildcard test/test_emulated.sh),"SURGR1_EMULATED=$(PROGRAM) sh test/test_emulated.sh")
	@$(PASSED)
gpu-check: gpu-there
	@test -n "$(SANITIZER)" || { echo "NOTHING WAS TESTED: compute-sanitizer is not there (it comes with the CUDA toolkit)"; exit 77; }
	@sh test/run.sh $(BUILD) $(foreach t,test_fragments test_kernels,"$(SANITIZER) --tool $(TOOL) --error-exitcode 9 \
	    $(if $(filter memcheck,$(TOOL)),--report-api-errors no) --target-processes application-only --print-limit 20 $(BUILD)/test/$(t) $(ONLY)")
	@$(PASSED)
# EMU=1 runs every line of it on the host at tiny sizes; its times mean nothing. MODEL=dir adds a whole training step and decoding,
# beside transformers and PEFT where PYTHON has them.
GPU_RESULT := $(BUILD)/bench/$(shell date +%F)-gpu.txt
bench-gpu: $(if $(EMU),,nvcc)
	@$(MAKE) $(if $(EMU),EMU=1,CUDA=1) bench-gpu-now
bench-gpu-now: $(BUILD)/bench/bench_gpu $(BUILD)/bench/make_checkpoint $(BUILD)/test/gpu_device
	@$(BUILD)/test/gpu_device || { echo "NOTHING WAS MEASURED: there is no usable GPU here. make bench-gpu EMU=1 runs the benchmark without one"; exit 77; }
	$(if $(EMU),$(BUILD)/bench/make_checkpoint demo $(BUILD)/bench/demo)
	$(BUILD)/bench/bench_gpu $(if $(EMU),--smoke --model $(BUILD)/bench/demo,$(MODEL:%=--model %)) $(if $(MODEL),--python $(PYTHON)) --out $(GPU_RESULT)
$(BUILD)/bench/bench_gpu.o: CPPFLAGS += $(if $(CUDA),$(if $(CUBLAS),-DSURGR1_CUBLAS),-DSURGR1_CUBLAS)
$(BUILD)/bench/bench_gpu: $(BUILD)/bench/bench_gpu.o $(PROBES) $(KERNELS) $(LIB)
	$(Q)$(CXX) $(LDFLAGS) $^ $(CUDA_LINK) $(LDLIBS) -o $@

# The method from start to end. base: data/base again, and whether it came out the same (on one type of machine, to the bit);
# KEEP=1 puts it there. demo: the stages of both papers from data/base. demo-full: five seeds, with every control.
DEMO  ?= demo
SEEDS ?= 1 2 3 4 5
BASE  := build/base
BASE_TAKES := config.json generation_config.json preprocessor_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt \
              chat_template.jinja model.safetensors
.PHONY: base demo demo-full built
built:
	@test -n "$(STB)" || $(MAKE) deps
	@$(MAKE) all
base: built
	./surgr1 run data/recipes/base.json --set out=$(BASE)
	@rm -rf $(BASE)/publish && mkdir $(BASE)/publish
	@for f in $(BASE_TAKES); do cp $(BASE)/train/export/$$f $(BASE)/publish/ || exit 1; done
	@cp $(BASE)/recipe.json $(BASE)/measure/tables.txt $(BASE)/publish/
	@sed -n 's/.*"ev":"step","step":\([0-9]*\),"loss":\([^,]*\),.*"align_loss":\([^,}]*\).*/\1\t\2\t\3/p' $(BASE)/train/run.jsonl > $(BASE)/publish/loss.tsv
	@cd $(BASE)/publish && sha256sum * > SHA256SUMS
	$(if $(KEEP),cp $(BASE)/publish/* data/base/)
	@cmp $(BASE)/publish/SHA256SUMS data/base/SHA256SUMS && echo "data/base: the same"
demo: built
	./surgr1 run data/recipes/demo.json --set out=$(DEMO)
	@cat $(DEMO)/table/table.txt $(DEMO)/table-vqla/table.txt; echo "$(DEMO)/report.html"
demo-full: built
	@for s in $(SEEDS); do ./surgr1 run data/recipes/demo.json --with full --set seed=$$s --set out=$(DEMO)-full/seed-$$s || exit 1; done
	./surgr1 table data/recipes/demo-table.json $(SEEDS:%=--root $(DEMO)-full/seed-%) --out $(DEMO)-full/table
	./surgr1 table data/recipes/demo-table-vqla.json $(SEEDS:%=--root $(DEMO)-full/seed-%) --out $(DEMO)-full/table-vqla

# Fuzzing: clang's libFuzzer over the same readers, with both sanitizers. SECONDS is per harness.
SECONDS ?= 60
fuzz:
	$(MAKE) FUZZ=1 SAN=1 CC=clang fuzz-now
.PHONY: fuzz-now
fuzz-now: $(FUZZERS)
	@for f in $(FUZZERS); do mkdir -p $(BUILD)/corpus/$$(basename $$f); \
	    $$f -max_total_time=$(SECONDS) -print_final_stats=1 $(BUILD)/corpus/$$(basename $$f) || exit 1; done
$(BUILD)/test/fuzz_%: $(BUILD)/test/fuzz_%.o $(LIB)
	$(Q)clang++ $(LDFLAGS) -fsanitize=fuzzer $< $(LIB) $(LDLIBS) -o $@

# -------------------------------------------------------------------------------------------------------------- care
.PHONY: format format-check clean help
FORMATTED := $(filter-out test/cuda_emu.h,$(wildcard *.[ch] io/*.[ch] data/*.[ch] surgery/*.[ch] commands/*.[ch] test/*.[ch] bench/*.[ch]))
format:
	clang-format -i $(FORMATTED)
format-check:
	clang-format --dry-run --Werror $(FORMATTED)
clean:
	rm -rf build build-* surgr1
help:
	@echo "make                  the program ./surgr1         make SAN=1 | EMU=1   with sanitizers | with emulated CUDA"
	@echo "make deps             what apt must install        make cuda            with CUDA, needs nvcc; CUBLAS= without cuBLASLt"
	@echo "SURGR1_EMU=reverse|shuffled,late  the emulator's schedule, of any command with --device cuda after make EMU=1"
	@echo "make test             every test                   make test SAN=1      under sanitizers"
	@echo "make test-oracle      ROOT=dir DEVICE=ref|cpu|cuda THREADS=n: other people's numbers in dir"
	@echo "make test-long        those on every device and several thread counts; kills and faults by the hundred"
	@echo "make test-weights     MODEL=dir: a real checkpoint"
	@echo "make demo             the stages of both papers     make demo-full      five seeds with every control"
	@echo "make test-gpu         every op and model test on a GPU     make bench-gpu   its speed, MODEL=dir PYTHON=path; EMU=1: without a GPU"
	@echo "make test-gpu-memcheck | -racecheck | -initcheck | -synccheck   kernel tests under compute-sanitizer, ONLY=name"
	@echo "make base             data/base again (KEEP=1: keep what came out)"
	@echo "make bench            speed, PYTHON=path         make fuzz SECONDS=n  fuzz the readers, needs clang"
	@echo "make deps-check       arrows between floors        make format-check    make clean"

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
.SECONDARY:
