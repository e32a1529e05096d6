// fuzz_safetensors.c - any bytes as a checkpoint file: refused with a message of the one form, or true in every word.
//
// Built by `make fuzz`. Property beyond "no finding": what is accepted lies inside the file, tiles its data exactly, can
// be read element by element at any alignment, and is found by name.
#include "../surgr1.h"

static void check(bool true_of_it, const char *what) {
    if (true_of_it) return;
    fprintf(stderr, "property broken: %s\n", what);
    abort();
}

static void read_all(const Tensor *t) {
    float f[64];
    int64_t n[64], nonfinite = 0;
    for (int64_t first = 0; first < t->elements; first += 64) {
        int64_t count = t->elements - first < 64 ? t->elements - first : 64;
        tensor_to_f32(t, first, count, f);
        for (int64_t i = 0; i < count; i++) nonfinite += !isfinite(f[i]);
        if (t->type < FT_I64) continue;
        tensor_to_i64(t, first, count, n);
        for (int64_t i = 0; i < count; i++)
            check(f[i] == (float)n[i], "an integer is the same as float and as integer");
    }
    int64_t counted = tensor_count_nonfinite(t);
    if (t->type == FT_F64) check(counted <= nonfinite, "a double that is not finite is no finite float");
    else check(counted == nonfinite, "non-finite elements are counted");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    TensorFile f;
    Err e = {0};
    if (!tensors_open_memory(&f, data, size, "fuzz.safetensors", &e)) {
        char line[4096];
        err_line(&e, "error", line, sizeof line);
        check(strstr(line, ": expected ") && strstr(line, "; found ") && strstr(line, "; do: ") && !strchr(line, '\n'),
              "a refusal is one line of the form");
        check(!strncmp(e.code, "E-ST-0", 6) || !strncmp(e.code, "E-JS-0", 6), "a refusal has a code of this reader");
        return 0;
    }
    size_t sum = 0;
    for (int64_t i = 0; i < f.count; i++) {
        const Tensor *t = &f.tensors[i];
        check(t->data >= data && t->bytes <= (size_t)(data + size - t->data), "a tensor lies inside the file");
        check(t->bytes == (size_t)t->elements * file_type_size(t->type), "its bytes are its elements");
        check(tensors_find(&f, t->name) == t, "it is found by its name");
        sum += t->bytes;
        read_all(t);
    }
    uint64_t header;
    memcpy(&header, data, 8);
    check(8 + header + sum == size, "sizes add up to the file");
    tensors_close(&f);
    return 0;
}
