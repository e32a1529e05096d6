// bench_tokenizer.c - how fast text becomes ids, on one thread.
//
//     bench_tokenizer DIR [TEXT_FILE]      DIR: a folder with tokenizer.json, or vocab.json and merges.txt
//     bench_tokenizer DIR TEXT_FILE OUT    also writes the ids as int32, to compare with other programs
//
// Without a text it makes 10 MB of words, digits and punctuation with a Zipf-like choice of words. Prints MB/s
// (10^6 bytes of text a second, best of five) for the whole text, for its lines one call each, and for decoding.
#include "../surgr1.h"

static Text text_generated(void) {
    Text words[4096] = {{0}}, t = {0};
    for (uint32_t k = 0; k < 4096; k++)
        for (uint32_t n = 2 + philox(1, RANDOM_TEST, k, 0, 0).v[0] % 9, j = 0; j < n; j++) {
            char letter = (char)('a' + philox(1, RANDOM_TEST, k, 1, j).v[0] % 26);
            text_add(words + k, &letter, 1);
        }
    for (uint32_t k = 0; t.len < 10000000; k++) {
        double u = random_uniform(2, RANDOM_TEST, k, 0);
        const Text *w = words + (int)(exp(u * log(4096.0)) - 1);
        text_add(&t, w->p, w->len);
        text_addf(&t, "%s", k % 13 == 0 ? ".\n" : k % 17 == 0 ? ", 37 " : " ");
    }
    for (int k = 0; k < 4096; k++) text_free(words + k);
    return t;
}

int main(int argc, char **argv) {
    Err e = {0};
    Tokenizer *t;
    Text text = {0};
    if (argc < 2) return fprintf(stderr, "usage: bench_tokenizer DIR [TEXT_FILE [OUT]]\n"), EXIT_USAGE;
    double start = clock_seconds();
    if (!tokenizer_load(&t, argv[1], &e)) return err_report(&e);
    printf("load                  %8.3f s\n", clock_seconds() - start);
    if (argc < 3) text = text_generated();
    else if (!file_read(argv[2], LIMIT_JSONL_BYTES, "E-IO-02", &text.p, &text.len, &e)) return err_report(&e);
    double best[3] = {1e9, 1e9, 1e9};
    Ids ids = {0};
    for (int round = 0; round < 5; round++) {
        ids.n = 0, start = clock_seconds();
        for (size_t at = 0; at < text.len;) {
            const char *end = memchr(text.p + at, '\n', text.len - at);
            size_t n = end ? (size_t)(end + 1 - text.p) - at : text.len - at;
            tokenizer_encode(t, text.p + at, n, false, &ids);
            at += n;
        }
        best[1] = fmin(best[1], clock_seconds() - start);
        ids.n = 0, start = clock_seconds();
        tokenizer_encode(t, text.p, text.len, true, &ids);
        best[0] = fmin(best[0], clock_seconds() - start);
        Text back = {0};
        start = clock_seconds();
        tokenizer_decode(t, ids.p, ids.n, false, &back);
        best[2] = fmin(best[2], clock_seconds() - start);
        text_free(&back);
    }
    double mb = 1e-6 * (double)text.len;
    printf("text                  %8.2f MB, %lld ids\n", mb, (long long)ids.n);
    printf("encode, in one call   %8.1f MB/s\n", mb / best[0]);
    printf("encode, line by line  %8.1f MB/s\n", mb / best[1]);
    printf("decode                %8.1f MB/s\n", mb / best[2]);
    if (argc > 3 && !file_write_atomic(argv[3], ids.p, (size_t)ids.n * sizeof *ids.p, &e)) return err_report(&e);
    ids_free(&ids), text_free(&text), tokenizer_free(t);
    return EXIT_OK;
}
