// fuzz_dataset.c - any bytes as one line of a dataset: refused, or a conversation whose paths stay inside.
#include "../surgr1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Record r;
    Err e = {0};
    if (!record_parse(&r, (const char *)data, size, "fuzz.jsonl", 1, &e)) {
        CHECK(err_exit_code(&e) == EXIT_REFUSED, "refused with %s", e.code);
        return 0;
    }
    for (int k = 0; k < r.n_images; k++) {
        const char *p = r.images[k];
        CHECK(*p && *p != '/' && !strstr(p, "../") && strcmp(p, ".."), "a path that leads out: %s", p);
    }
    for (int i = 0; i < r.n; i++)
        for (int k = 0; k < r.messages[i].n_parts; k++)
            CHECK(r.messages[i].parts[k].image < r.n_images, "a picture that is not there");
    record_free(&r);
    return 0;
}
