// base.h - the ground floor: limits, errors, logging, random numbers, clocks and the thread pool's door.
//
// What it is:  the few things every other file uses. Plain C11 that is also C++ (kernels.cu includes it through ops.h).
// What it is not: anything that knows of tensors (ops.h) or of models (surgr1.h).
// Read next:  ops.h.
#ifndef SURGR1_BASE_H
#define SURGR1_BASE_H
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif
#if defined(__GNUC__)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define MUST_CHECK             __attribute__((warn_unused_result))
#define NO_RETURN              __attribute__((noreturn))
#else
#define PRINTF_LIKE(fmt, args)
#define MUST_CHECK
#define NO_RETURN
#endif

#define SURGR1_VERSION "0.1.0"

// ---------------------------------------------------------------------------------------------------------- limits
// Every limit of the program, once. A file can never raise one; `surgr1 limits` prints this table.
#define SURGR1_LIMITS(X)                                                                                               \
    X(LIMIT_CONFIG_BYTES, INT64_C(16777216), "bytes of a configuration JSON file")                                     \
    X(LIMIT_HEADER_BYTES, INT64_C(16777216), "bytes of a safetensors header")                                          \
    X(LIMIT_TENSORS, INT64_C(65536), "tensors in a checkpoint")                                                        \
    X(LIMIT_SHARDS, INT64_C(1024), "shards of a checkpoint")                                                           \
    X(LIMIT_TENSOR_NAME_BYTES, INT64_C(512), "bytes of a tensor name")                                                 \
    X(LIMIT_TENSOR_DIMS, INT64_C(8), "dimensions of a tensor")                                                         \
    X(LIMIT_TENSOR_DIM, INT64_C(1099511627776), "size of one tensor dimension")                                        \
    X(LIMIT_JSON_DEPTH, INT64_C(64), "nested levels of JSON")                                                          \
    X(LIMIT_JSON_VALUES, INT64_C(8388608), "values of one JSON text")                                                  \
    X(LIMIT_HEADER_DEPTH, INT64_C(4), "nested levels of a safetensors header")                                         \
    X(LIMIT_JSONL_LINE_BYTES, INT64_C(1048576), "bytes of one JSONL line")                                             \
    X(LIMIT_JSONL_BYTES, INT64_C(68719476736), "bytes of a JSONL file")                                                \
    X(LIMIT_JSONL_LINES, INT64_C(2147483647), "lines of a JSONL file")                                                 \
    X(LIMIT_TABLE_BYTES, INT64_C(268435456), "bytes of an annotation table, or of a data set's JSON or pickle")        \
    X(LIMIT_TOKENIZER_BYTES, INT64_C(67108864), "bytes of tokenizer.json, vocab.json or merges.txt")                   \
    X(LIMIT_VOCAB, INT64_C(1048576), "entries of a vocabulary, and merges")                                            \
    X(LIMIT_TOKEN_BYTES, INT64_C(4096), "bytes of one token")                                                          \
    X(LIMIT_MERGE_LINE_BYTES, INT64_C(8192), "bytes of one line of merges.txt")                                        \
    X(LIMIT_IMAGE_BYTES, INT64_C(67108864), "bytes of an image file")                                                  \
    X(LIMIT_IMAGE_SIDE, INT64_C(8192), "pixels of an image side")                                                      \
    X(LIMIT_IMAGE_PIXELS, INT64_C(33554432), "pixels of an image")                                                     \
    X(LIMIT_IMAGE_RATIO, INT64_C(200), "ratio of the longer image side to the shorter")                                \
    X(LIMIT_PNG_CHUNKS, INT64_C(65536), "chunks of a PNG")                                                             \
    X(LIMIT_JPEG_SCANS, INT64_C(512), "scans of a JPEG")                                                               \
    X(LIMIT_MODEL_PIXELS, INT64_C(12845056), "pixels of one image after the resize")                                   \
    X(LIMIT_IMAGES, INT64_C(16), "images of one sample")                                                               \
    X(LIMIT_BOXES, INT64_C(64), "boxes of one answer")                                                                 \
    X(LIMIT_QUESTION_BYTES, INT64_C(16384), "bytes of a question")                                                     \
    X(LIMIT_OUTPUT_BYTES, INT64_C(262144), "bytes of one model output")                                                \
    X(LIMIT_NEW_TOKENS, INT64_C(8192), "generated tokens of one answer")                                               \
    X(LIMIT_CONTEXT, INT64_C(32768), "tokens of one sequence")                                                         \
    X(LIMIT_LORA_RANK, INT64_C(1024), "LoRA rank")                                                                     \
    X(LIMIT_PATTERN, INT64_C(16384), "bytes of a regular expression, and steps of it compiled")                        \
    X(LIMIT_THREADS, INT64_C(256), "threads")                                                                          \
    X(LIMIT_LOG_LINE_BYTES, INT64_C(65536), "bytes of one line of a log")                                              \
    X(LIMIT_LOG_TEXT_BYTES, INT64_C(8192), "bytes of one text in a log, the rest is cut")                              \
    X(LIMIT_PATH_BYTES, INT64_C(1024), "bytes of a path")                                                              \
    X(LIMIT_WARNINGS, INT64_C(5), "warnings printed of one code")                                                      \
    X(LIMIT_LISTED, INT64_C(20), "problems or names listed in one report")
#define X(name, value, what) static const int64_t name = value;
SURGR1_LIMITS(X)
#undef X

// ---------------------------------------------------------------------------------------------------------- errors
// Exit codes (one table for the whole program).
enum ExitCode {
    EXIT_OK = 0,
    EXIT_NO = 1,      // ran to the end, and the answer is "no": a difference was found
    EXIT_USAGE = 2,   // the command line is wrong
    EXIT_REFUSED = 3, // an input was refused (E-JS E-CF E-ST E-IX E-TK E-DS E-IM E-TA E-AD)
    EXIT_READ = 4,    // something could not be read (E-IO)
    EXIT_WRITE = 5,   // something could not be written (E-WR)
    EXIT_MEMORY = 6,  // out of memory, or over a limit (E-ME)
    EXIT_DEVICE = 7,  // the device failed (E-DV)
    EXIT_NUMBERS = 8, // the numbers went bad (E-NU)
    EXIT_CHECKPOINT = 9,
    EXIT_LOCKED = 10,
    EXIT_BUG = 70,     // an internal check or an op's contract failed (E-BG)
    EXIT_STOPPED = 75, // stopped on request
};

// Where an error is. Fill only what applies, through AT(.file = path, .line = 3, .col = 7, .field = "hidden_size").
typedef struct Where {
    const char *file;   // path as the user gave it
    int64_t line, col;  // 1-based, the column counts bytes; 0 = none
    bool has_byte;      // binary position: BYTE(n)
    int64_t byte;       // from the start of the file
    const char *field;  // JSON field path, "a.b[3]"
    const char *tensor; // tensor name
    const char *sample; // sample id
} Where;
#define AT(...) ((Where){__VA_ARGS__})
#define BYTE(n) .has_byte = true, .byte = (int64_t)(n)

// One failure. Readers fill it and return false; they never exit and never repair. code is "" while nothing failed.
typedef struct Err {
    char code[8]; // "E-ST-08"
    char file[1100];
    int64_t line, col, byte;
    bool has_byte;
    char field_kind[8]; // "field", "tensor" or "sample"
    char field[300];
    char expected[512], found[512], todo[320];
} Err;

// Fills *e and returns false, so that a reader can `return err_set(...)`. fmt reads "expected A; found B; do: C": the
// three parts in this order, always all of them. Text that comes from a file goes in through quoted(). The first error
// wins: a second call on a filled Err changes nothing. Implemented in base.c.
bool err_set(Err *e, const char *code, Where at, const char *fmt, ...) PRINTF_LIKE(4, 5);
// "surgr1: error CODE: WHERE: expected A; found B; do: C" without the newline; returns buf.
const char *err_line(const Err *e, const char *level, char *buf, size_t size);
int err_exit_code(const Err *e); // by the two letters of the code
// Text from a file for a message: in double quotes, at most 64 bytes, other bytes than printable ASCII as \xHH.
// The result lives in one of 8 rotating buffers per thread.
const char *quoted(const char *text, size_t len);
// Prints a warning of the same form on standard error (the first LIMIT_WARNINGS of each code, then only counts).
void warn(const char *code, Where at, const char *fmt, ...) PRINTF_LIKE(3, 4);
int64_t warn_count(const char *code); // how often it came so far
void warn_summary(void);              // one note for each code that came more often than it was printed
// Prints *e as "error" line on standard error (one JSON object with --log-format json) and returns its exit code.
int err_report(const Err *e);

// A broken contract inside the program: prints E-BG-01 with source line and text, exits 70 (aborts in debug builds).
NO_RETURN void bug(const char *file, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);
#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) bug(__FILE__, __LINE__, __VA_ARGS__);                                                        \
    } while (0)

// Checked size arithmetic for numbers that come from files: false on overflow, *out untouched.
static inline MUST_CHECK bool mul_ok(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline MUST_CHECK bool add_ok(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }

// Memory that must be there: exits with E-ME-01 naming `what` when it is not. count*size is checked. Zeroed.
void *alloc_or_die(size_t count, size_t size, const char *what);
void *grow_or_die(void *p, size_t count, size_t size, const char *what); // realloc; new bytes are not zeroed

// ------------------------------------------------------------------------------------------------------------ text
// Growing text; a broken allocation exits with E-ME-01. Always zero-terminated once something was added.
typedef struct Text {
    char *p;
    size_t len, cap;
} Text;
void text_add(Text *t, const char *bytes, size_t len);
void text_addf(Text *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
void text_free(Text *t);
// Text of strangers for a terminal, which it must not drive: control characters but those in `allowed`, and bytes
// that are not UTF-8, become \xHH.
void text_add_clean(Text *t, const char *bytes, size_t len, const char *allowed);
// A JSON string with quotes and escapes; bytes that are not UTF-8 become U+FFFD.
void text_add_json_string(Text *t, const char *bytes, size_t len);
// Base64 with padding (RFC 4648 section 4).
void text_add_base64(Text *t, const uint8_t *bytes, size_t len);
// Shortest decimal that reads back as the same double (a few powers of two get one digit more). NaN, infinity: a bug.
void text_add_json_number(Text *t, double v);

uint64_t bytes_hash(const void *bytes, size_t len); // FNV-1a, 64 bits
// UTF-8. Decodes one code point at text[*pos] (advances *pos), or returns -1 at an ill-formed byte and advances past
// the maximal invalid subpart (Unicode 3.9, as Python and the WHATWG decoder do), so that each -1 is one U+FFFD.
int32_t utf8_next(const char *text, size_t len, size_t *pos);
size_t utf8_put(char out[4], uint32_t code_point); // bytes written
bool utf8_valid(const char *text, size_t len, size_t *bad_at);
// The length of the longest prefix of text that does not end inside a multi-byte character: what a stream may print.
size_t utf8_complete(const char *text, size_t len);

// ---------------------------------------------------------------------------------------------------------- logging
// Results go to standard output; everything else goes to standard error through these.
enum LogLevel { LOG_QUIET, LOG_NORMAL, LOG_VERBOSE };
void log_setup(int level, bool json);              // --quiet/--verbose, --log-format text|json
void note(const char *fmt, ...) PRINTF_LIKE(1, 2); // one line at LOG_NORMAL and above
void note_verbose(const char *fmt, ...) PRINTF_LIKE(1, 2);

// One line that is redrawn on standard error when it is a terminal; nothing otherwise.
void progress(const char *what, int64_t done, int64_t total, double started_seconds);

// SIGINT and SIGTERM ask for a stop; whoever works in a loop looks. A second one within 5 s of the first ends the process
// at once, with EXIT_STOPPED.
void stop_on_signals(void);
bool stop_requested(void);

static inline double clock_seconds(void) { // monotonic
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---------------------------------------------------------------------------------------------------------- random
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a pure function of key and
// counter. No generator state exists, so none can be lost, and threads and batches may come in any order.
typedef struct Random4 {
    uint32_t v[4];
} Random4;
enum RandomPurpose {
    RANDOM_SAMPLE = 1,
    RANDOM_ORDER,
    RANDOM_INIT,
    RANDOM_DROPOUT,
    RANDOM_TEST,
    RANDOM_BOOTSTRAP,
    RANDOM_WORDING
};

static inline HOST_DEVICE Random4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1, c3 = (uint32_t)p0, c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    Random4 r = {{c0, c1, c2, c3}};
    return r;
}
// Uniform in (0, 1) with 53 bits, from (seed, purpose, stream, index): never 0 and never 1.
static inline HOST_DEVICE double random_uniform(uint64_t seed, uint32_t purpose, uint64_t stream, uint32_t index) {
    Random4 r = philox(seed, purpose, (uint32_t)stream, (uint32_t)(stream >> 32), index);
    uint64_t bits = ((uint64_t)r.v[0] << 32 | r.v[1]) >> 11;
    return ((double)bits + 0.5) * (1.0 / 9007199254740992.0);
}

// ---------------------------------------------------------------------------------------------------------- threads
// One pool for the whole program, implemented in cpu.c. Work is cut into chunks whose bounds depend on the problem
// only, never on the thread count, and chunks write disjoint outputs: so the number of threads never changes a bit.
void pool_start(int threads);                                  // 1..LIMIT_THREADS; 0 = as many as there are processors
void pool_stop(void);                                          // joins all threads; safe to call twice
int pool_threads(void);                                        // 1 before pool_start
typedef void (*PoolJob)(void *ctx, int64_t chunk, int thread); // thread in [0, pool_threads())
void parallel_for(int64_t chunks, PoolJob job, void *ctx);     // returns when all chunks are done; not reentrant

#ifdef __cplusplus
}
#endif
#endif
