// compare.h - how far a tensor is from its reference: the one measure that all tests use.
#ifndef SURGR1_COMPARE_H
#define SURGR1_COMPARE_H
#include "../surgr1.h"

// Both numbers must hold, and nothing may be non-finite.
typedef struct TensorError {
    double relative_l2; // |got - want| / |want|
    double max_rms;     // largest difference over the rms of the reference
    int64_t nonfinite;
} TensorError;
static inline TensorError tensor_error(const float *got, const float *want, int64_t n) {
    double diff = 0, norm = 0, largest = 0;
    TensorError e = {0, 0, 0};
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) e.nonfinite++;
        double d = (double)got[i] - (double)want[i];
        diff += d * d, norm += (double)want[i] * want[i], largest = fabs(d) > largest ? fabs(d) : largest;
    }
    if (norm == 0) norm = n ? 1e-30 * (double)n : 1;
    e.relative_l2 = sqrt(diff / norm), e.max_rms = n ? largest / sqrt(norm / (double)n) : 0;
    return e;
}
// True when the error is inside the limit: relative L2 <= limit and max/rms <= 100 * limit.
static inline bool error_within(TensorError e, double limit) {
    return e.nonfinite == 0 && e.relative_l2 <= limit && e.max_rms <= 100 * limit;
}
#endif
