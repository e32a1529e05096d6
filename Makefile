# surgr1: builds what this machine can build, and says what it found.
#
#   make              the program, ./surgr1 (no nvcc, no GPU needed)
#   make test         every test; SAN=1 under AddressSanitizer and UndefinedBehaviorSanitizer
#   make help         all targets
#
# Flags that teach: -ffp-contract=off, so that a*b+c means what it says and no two compilers differ (FMA is written as
# such where it is wanted); never -ffast-math: it would delete the NaN checks.

CC      ?= gcc
CXX     ?= g++
SAN     ?=
BUILD   := $(if $(SAN),build-san,build)
OPT     := $(if $(SAN),-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DSURGR1_DEBUG,-O2)
WARN    := -Wall -Wextra -Wshadow -Wvla -Wformat=2 -Werror
HARD    := -fstack-protector-strong -fPIE $(if $(SAN),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
CFLAGS  := -std=gnu11 -g $(OPT) $(WARN) $(HARD) -ffp-contract=off -fno-strict-aliasing -MMD -MP -pthread
LDFLAGS := -pie -pthread $(if $(SAN),-fsanitize=address,undefined,-Wl,-z,relro,-z,now)
LDLIBS  := -lm

SRC := ops.c cpu.c tokenizer.c block.c vision.c model.c generate.c \
       io/files.c io/json.c io/safetensors.c io/image.c io/log.c data/records.c surgery/answer.c
OBJ := $(SRC:%.c=$(BUILD)/%.o)
# files that read what strangers wrote: narrowing conversions are errors there
STRICT := io/files io/json io/safetensors io/image io/log tokenizer data/records surgery/answer
$(STRICT:%=$(BUILD)/%.o): CFLAGS += -Wconversion -Wno-sign-conversion
