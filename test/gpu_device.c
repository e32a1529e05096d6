// gpu_device.c - says which CUDA device there is; exit 77 and the reason when there is none. `make test-gpu` asks it first.
#include "gpu_probe.h"
#include <stdio.h>

__attribute__((weak)) bool gpu_describe(char *text, size_t size);

int main(void) {
    char text[600];
    bool there = gpu_describe ? gpu_describe(text, sizeof text) : emulated_describe(text, sizeof text);
    fprintf(there ? stdout : stderr, "%s\n", text);
    return there ? 0 : 77;
}
