// tokenizer.c - surgr1 tokenizer: a small vocabulary for a model that starts from nothing.
//
// What it is:  glue: options in, one line of counts out.
// What it is not: the counting (tokenizer_train.c).
// Read before: commands.h, tokenizer_train.c.  Read next: init.c.
#include "commands.h"

static struct {
    Many data, text;
    const char *words, *out;
    int64_t size;
} tokenizer;

// clang-format off
static Option tokenizer_options[] = {
    MANY("data", &tokenizer.data, "FILE", "records whose messages the vocabulary is made for; again for more", 64),
    MANY("text", &tokenizer.text, "FILE", "plain text; again for more", 64),
    INT("size", &tokenizer.size, "N", "ids in all: 256 bytes, 8 added tokens, the rest is learned", 264, 1048576),
    TEXT("words", &tokenizer.words, "LIST|FILE", "words to be one token each, with and without a space in front: \"hook,clip\", or a file of them"),
    TEXT("out", &tokenizer.out, "DIR", "new folder"),
    END};
// clang-format on

static int run_tokenizer(char **args, int n) {
    (void)args, (void)n;
    Err e = {0};
    TokenizerStats s;
    if (!tokenizer.data.n && !tokenizer.text.n)
        return usage("--data", "a file of records, or --text", "none", "give --data FILE");
    if (!tokenizer.size) return usage("--size", "how many ids", "none", "give --size N");
    if (!tokenizer.out) return usage("--out", "a folder for the result", "none", "give --out DIR");
    TokenizerTrain o = {.data = tokenizer.data.p,
                        .n_data = tokenizer.data.n,
                        .text = tokenizer.text.p,
                        .n_text = tokenizer.text.n,
                        .words = tokenizer.words,
                        .size = tokenizer.size};
    if (!tokenizer_train(&o, tokenizer.out, &s, &e)) return err_report(&e);
    printf("{\"size\":%lld,\"merges\":%lld,\"merges_for_words\":%lld,\"pieces\":%lld,\"distinct_pieces\":%lld,"
           "\"pieces_left_out\":%lld,\"bytes\":%lld,\"tokens\":%lld}\n",
           (long long)s.size, (long long)s.merges, (long long)s.word_merges, (long long)s.pieces, (long long)s.distinct,
           (long long)s.left_out, (long long)s.bytes, (long long)s.tokens);
    warn_summary();
    return EXIT_OK;
}

const Command command_tokenizer = {
    "tokenizer",
    "tokenizer --data FILE... --size N --out DIR",
    "Makes a byte-level BPE vocabulary of the Qwen2 kind from records and texts: pieces as Qwen2 cuts them, the most\n"
    "frequent pair first, of equal ones the pair with the lower ids. The folder opens in transformers too.\n"
    "One JSON line with counts on standard output; tokens: what the texts come to in the new vocabulary.",
    tokenizer_options,
    0,
    0,
    "no argument",
    run_tokenizer};
