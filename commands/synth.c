// synth.c - surgr1 synth: reasoning data, from a teacher's answers or from the truth of drawn scenes.
//
// What it is:  glue for three things: write requests, take in responses, teach drawn scenes.
// What it is not: any of the three (surgery/synth.c, surgery/teach.c), or a client: a server or a batch service answers
//              the files.
// Read before: commands.h, surgery/synth.c.  Read next: sft.c.
#include "commands.h"

enum { DETAIL_NONE, DETAIL_AUTO, DETAIL_LOW, DETAIL_HIGH };
static struct {
    const char *data, *image_root, *out, *model, *requests, *retry;
    Many knowledge, responses;
    int64_t max_bytes, max_tokens, min_words, max_words, seed;
    double temperature;
    int detail, limit;
    bool brief;
    double wrong, overcall;
    bool silent;
} synth = {.max_bytes = 90000000, .max_tokens = 2048, .min_words = 40, .max_words = 450, .seed = 1, .temperature = 0.7};

// clang-format off
static Option synth_options[] = {
    TEXT("data", &synth.data, "FILE", "requests, teach: records of surgr1 scenes or import"),
    TEXT("out", &synth.out, "PATH", "requests: new folder; ingest, teach: file of training records"),
    MANY("knowledge", &synth.knowledge, "FILE", "requests: data/knowledge/*.json; each record takes those of its procedure", 64),
    TEXT("model", &synth.model, "NAME", "requests: the teacher, as its server names it"),
    TEXT("image-root", &synth.image_root, "DIR", "requests: where picture paths start (default: beside the records)"),
    CHOICE("image-detail", &synth.detail, "none|auto|low|high", "requests: \"detail\" of the pictures"),
    INT("max-bytes", &synth.max_bytes, "N", "requests: largest file (base64 adds a third to a picture)", 1000, 1e12),
    INT("max-tokens", &synth.max_tokens, "N", "requests: longest answer", 1, 1e6),
    CHOICE("limit-name", &synth.limit, "max_tokens|max_completion_tokens", "requests: what the server calls that"),
    REAL("temperature", &synth.temperature, "T", "requests: of the teacher; -1 = do not say", -1, 2),
    INT("min-words", &synth.min_words, "N", "requests: shortest thought in words (about 1.35 tokens each); ingest keeps to it", 0, 10000),
    INT("max-words", &synth.max_words, "N", "requests: longest thought in words", 1, 10000),
    TEXT("requests", &synth.requests, "DIR", "ingest: the folder that requests wrote"),
    MANY("responses", &synth.responses, "FILE", "ingest: what came back, in any order; again for more", 64),
    TEXT("retry", &synth.retry, "DIR", "ingest: new folder of requests for all that was refused"),
    INT("seed", &synth.seed, "N", "teach: another seed chooses other words", 0, 9007199254740992.),
    FLAG("brief", &synth.brief, "teach: a few words a level, for small models"),
    FLAG("silent", &synth.silent, "teach: answers without thoughts, the same ones"),
    REAL("wrong", &synth.wrong, "F", "teach: share of the records whose thought is wrong about one instrument", 0, 1),
    REAL("overcall", &synth.overcall, "F", "teach: share of unmet criteria of the critical view it takes for met, and answers by that", 0, 1),
    END};
// clang-format on

static int run_requests(void) {
    static const char *const details[] = {NULL, "auto", "low", "high"};
    Err e = {0};
    SynthSent sent = {0};
    if (!synth.data) return usage("--data", "a file of records", "none", "give --data FILE");
    if (!synth.knowledge.n)
        return usage("--knowledge", "a knowledge file", "none", "give --knowledge data/knowledge/X.json");
    if (!synth.out) return usage("--out", "a folder for the requests", "none", "give --out DIR");
    if (!synth.model) return usage("--model", "the teacher's name", "none", "give --model NAME");
    if (synth.min_words > synth.max_words)
        return usage("--min-words", "at most --max-words", "more", "lower it, or raise --max-words");
    SynthRequests o = {.data = synth.data,
                       .image_root = synth.image_root,
                       .knowledge = synth.knowledge.p,
                       .n_knowledge = synth.knowledge.n,
                       .out = synth.out,
                       .model = synth.model,
                       .image_detail = details[synth.detail],
                       .limit_name = synth.limit ? "max_completion_tokens" : "max_tokens",
                       .max_tokens = synth.max_tokens,
                       .temperature = synth.temperature,
                       .max_bytes = synth.max_bytes,
                       .min_words = synth.min_words,
                       .max_words = synth.max_words};
    if (!synth_requests(&o, &sent, &e)) return err_report(&e);
    printf("{\"requests\":%lld,\"files\":%lld,\"bytes\":%lld}\n", (long long)sent.requests, (long long)sent.files,
           (long long)sent.bytes);
    return EXIT_OK;
}

static int run_ingest(void) {
    Err e = {0};
    SynthCounts c;
    Text line = {0};
    if (!synth.requests) return usage("--requests", "a folder of requests", "none", "give --requests DIR");
    if (!synth.responses.n) return usage("--responses", "a file of responses", "none", "give --responses FILE");
    if (!synth.out) return usage("--out", "a file for the training records", "none", "give --out FILE");
    if (!synth_ingest(synth.requests, synth.responses.p, synth.responses.n, synth.out, synth.retry, &c, &e))
        return err_report(&e);
    synth_counts_print(&c, &line);
    fputs(line.p, stdout);
    text_free(&line);
    warn_summary();
    return EXIT_OK;
}

static int run_teach(void) {
    Err e = {0};
    int64_t n = 0;
    if (!synth.data) return usage("--data", "a file of records", "none", "give --data FILE");
    if (!synth.out) return usage("--out", "a file for the training records", "none", "give --out FILE");
    TeachOptions o = {.brief = synth.brief, .wrong = synth.wrong, .overcall = synth.overcall, .silent = synth.silent};
    if (!synth_teach(synth.data, synth.out, (uint64_t)synth.seed, o, &n, &e)) return err_report(&e);
    printf("{\"records\":%lld,\"teacher\":\"scene-graph\"}\n", (long long)n);
    return EXIT_OK;
}

static int run_synth(char **args, int n) {
    (void)n;
    if (!strcmp(args[0], "requests")) return run_requests();
    if (!strcmp(args[0], "ingest")) return run_ingest();
    if (!strcmp(args[0], "teach")) return run_teach();
    return usage("what", "requests, ingest or teach", quoted(args[0], strlen(args[0])), "name one of them");
}

const Command command_synth = {
    "synth",
    "synth requests|ingest|teach [options]",
    "Reasoning data. requests: batch files (OpenAI JSONL, pictures inline) for a teacher, with what is typical of the\n"
    "operation; any OpenAI-compatible server answers them. ingest: joins the answers by id, refuses what is wrong,\n"
    "cut off, gives the label away or is of the wrong form, and writes training records and a retry folder.\n"
    "teach: the built-in teacher of drawn scenes (surgr1 scenes --truth).\n"
    "One JSON line with counts on standard output.",
    synth_options,
    1,
    1,
    "requests, ingest or teach",
    run_synth};
