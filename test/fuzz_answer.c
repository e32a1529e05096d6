// fuzz_answer.c - any bytes as a model's answer: boxes inside the text's meaning, whole labels, the same twice.
#include "../surgr1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Box a[64], b[64];
    int n = answer_boxes((const char *)data, size, a, 64);
    CHECK(n >= 0 && n <= 64 && answer_boxes((const char *)data, size, b, 64) == n, "a second reading differs");
    for (int i = 0; i < n; i++) {
        const double v[4] = {a[i].x1, a[i].y1, a[i].x2, a[i].y2};
        for (int k = 0; k < 4; k++) CHECK(fabs(v[k]) < 1e6, "a number no box can hold");
        CHECK(memchr(a[i].label, 0, sizeof a[i].label) != NULL, "a label without an end");
    }
    return 0;
}
