// test.h - the whole test framework: register a behaviour, expect things of it, count.
//
// A test file holds TEST(what_is_true) { EXPECT(...); } blocks and nothing else; main is here. Run one by name:
//     build/test_json number_with_exponent
// A test may SKIP("reason"): it is counted and printed. The last line is "NAME: N passed, N failed, N skipped".
#ifndef SURGR1_TEST_H
#define SURGR1_TEST_H
#include "compare.h"
#include <unistd.h>

typedef struct TestCase {
    const char *name;
    void (*run)(void);
    struct TestCase *next;
} TestCase;
static TestCase *test_first, **test_last = &test_first;
static const char *test_current;
static int test_failures, test_skipped_now;
static char test_skip_reason[300];

#define TEST(test_name)                                                                                                \
    static void test_name(void);                                                                                       \
    static TestCase test_name##_case = {#test_name, test_name, NULL};                                                  \
    __attribute__((constructor)) static void test_name##_register(void) {                                              \
        *test_last = &test_name##_case, test_last = &test_name##_case.next;                                            \
    }                                                                                                                  \
    static void test_name(void)

#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        if (test_failures++ < 20) {                                                                                    \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, test_current);                                          \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
        }                                                                                                              \
    } while (0)
#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) FAIL("expected %s", #condition);                                                             \
    } while (0)
#define EXPECT_INT(got, want)                                                                                          \
    do {                                                                                                               \
        long long g_ = (long long)(got), w_ = (long long)(want);                                                       \
        if (g_ != w_) FAIL("%s: expected %lld, got %lld", #got, w_, g_);                                               \
    } while (0)
#define EXPECT_STR(got, want)                                                                                          \
    do {                                                                                                               \
        const char *g_ = (got), *w_ = (want);                                                                          \
        if (!g_ || strcmp(g_, w_)) FAIL("%s: expected \"%s\", got \"%s\"", #got, w_, g_ ? g_ : "(null)");              \
    } while (0)
#define EXPECT_NEAR(got, want, limit)                                                                                  \
    do {                                                                                                               \
        double g_ = (double)(got), w_ = (double)(want);                                                                \
        if (!(fabs(g_ - w_) <= (limit)))                                                                               \
            FAIL("%s: expected %.9g, got %.9g (limit %.3g)", #got, w_, g_, (double)(limit));                           \
    } while (0)
#define SKIP(...)                                                                                                      \
    do {                                                                                                               \
        snprintf(test_skip_reason, sizeof test_skip_reason, __VA_ARGS__), test_skipped_now = 1;                        \
        return;                                                                                                        \
    } while (0)

#define EXPECT_CLOSE(what, got, want, n, limit)                                                                        \
    do {                                                                                                               \
        TensorError e_ = tensor_error(got, want, n);                                                                   \
        if (!error_within(e_, limit))                                                                                  \
            FAIL("%s: relative L2 %.3g, max/rms %.3g, %lld non-finite (limit %.3g)", what, e_.relative_l2, e_.max_rms, \
                 (long long)e_.nonfinite, (double)(limit));                                                            \
    } while (0)

// The folder with other people's numbers ("../shared" unless SURGR1_ROOT says otherwise).
static inline const char *test_root(void) {
    const char *r = getenv("SURGR1_ROOT");
    return r && *r ? r : "../shared";
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0, skipped = 0;
    const char *base = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    for (TestCase *t = test_first; t; t = t->next) {
        if (argc > 1 && !strstr(t->name, argv[1])) continue;
        test_current = t->name, test_failures = 0, test_skipped_now = 0;
        t->run();
        if (test_failures) failed++, printf("FAIL %s (%d)\n", t->name, test_failures);
        else if (test_skipped_now) skipped++, printf("skip %s: %s\n", t->name, test_skip_reason);
        else passed++, printf("ok   %s\n", t->name);
        fflush(stdout);
    }
    printf("%s: %d passed, %d failed, %d skipped\n", base, passed, failed, skipped);
    return failed ? 1 : 0;
}
#endif
