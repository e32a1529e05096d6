// test_cuda_generate.c - generation on "cuda": one launch a step, a prompt computed once, and the same bits and tokens
// whether steps are recorded or not, in whatever company and under whatever schedule.
//
// What it is:  a tiny model on the emulated kernels (or, linked with the nvcc object, on the GPU), driven through a
//              table of ops that counts calls on their way to the device.
// What it is not: the kernels against their references (test_kernels.c), nor the emulator's own rules of capture
//              (test_cuda_emu.cpp).
// Read before: generate.c, kernels.cu "capture".
#include "../surgr1.h"

#include "tiny.h"
#include <sys/wait.h>

__attribute__((weak)) void cuda_emu_schedule(int order, int early); // absent beside a real GPU

static const Ops *cuda(Type type) {
    Err e = {0};
    const Ops *d = ops_cuda(type, &e);
    if (!d) { // nothing below can run: say so in the form of a test's last line
        char line[1200];
        printf("skip all: %s\ntest_cuda_generate: 0 passed, 0 failed, 1 skipped\n",
               err_line(&e, "error", line, sizeof line));
        exit(0);
    }
    return d;
}
static void schedule(int order, int early) {
    if (cuda_emu_schedule) cuda_emu_schedule(order, early);
}

// ------------------------------------------------------------------------------------------------------------ counting

// A device that is another one and counts. Decoder heads are told from those of the vision tower by their number.
static const Ops *under;
static struct Counts {
    int uploads, downloads, syncs, captures, replays, releases, samples, merges;
    int64_t decoder_rows, decode_rows; // query rows of attention, over all layers
    int uploads_lost_from;             // a fault: uploads from this one on are lost; 0: none
} count;
static void counted_upload(Mat dst, Mat host) {
    count.uploads++;
    if (!count.uploads_lost_from || count.uploads < count.uploads_lost_from) under->upload(dst, host);
}
static void counted_download(Mat host, Mat src) { count.downloads++, under->download(host, src); }
static void counted_sync(void) { count.syncs++, under->sync(); }
static void counted_sample(Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams p) {
    count.samples++, under->sample(tokens, logits, seen, streams, steps, p);
}
static void counted_gelu(Mat y, Mat x) { count.merges++, under->gelu_forward(y, x); } // only the merger has one
static void counted_attention(Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                              int64_t dim, float scale) {
    if (heads == 3) count.decoder_rows += q.rows;
    under->attention_forward(o, lse, q, k, v, spans, heads, kv_heads, dim, scale);
}
static void counted_decode(Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads, int64_t dim,
                           float scale) {
    count.decode_rows += q.rows, under->attention_decode(o, q, k, v, spans, heads, kv_heads, dim, scale);
}
static bool counted_begin(void) {
    bool began = under->capture_begin();
    count.captures += began;
    return began;
}
static void counted_replay(void *graph) { count.replays++, under->replay(graph); }
static void counted_release(void *graph) { count.releases++, under->capture_release(graph); }

// `graphs`: else the device has none, as cpu has none, and batches are not filled up either.
static const Ops *counted(const Ops *d, bool graphs) {
    static Ops tables[2];
    Ops *o = &tables[graphs];
    under = d, *o = *d, count = (struct Counts){0};
    o->upload = counted_upload, o->download = counted_download, o->sync = counted_sync;
    o->sample = counted_sample, o->gelu_forward = counted_gelu;
    o->attention_forward = counted_attention, o->attention_decode = counted_decode;
    o->capture_begin = graphs ? counted_begin : NULL;
    if (graphs) o->replay = counted_replay, o->capture_release = counted_release;
    return o;
}

// ------------------------------------------------------------------------------------------------------ one generation

// A picture of 4 x 6 patches is 6 tokens.
static const int32_t SEEING[] = {3, 4, 42, 40, 40, 40, 40, 40, 40, 43, 5, 6, 7};
static const int32_t READING[] = {9, 8, 7, 30, 12};
static const Grid GRID = {1, 4, 6};
enum { ANSWERS = 6, NEW = 12 };

static void load_as(Model *m, const Ops *d, const char *config) { // where it stays: the parameter table points into it
    static char written[3000];
    Err e = {0};
    if (strcmp(written, config)) checkpoint(config, false), snprintf(written, sizeof written, "%s", config);
    if (!model_load(m, folder, d, (LoadOptions){0}, &e)) err_report(&e), exit(99);
}
static void load(Model *m, const Ops *d) { load_as(m, d, FLAT); }
// FLAT with pieces replaced, first by second.
static const char *changed(char out[3000], const char *const edits[][2], int n) {
    char in[3000];
    snprintf(out, 3000, "%s", FLAT);
    for (int i = 0; i < n; i++) {
        memcpy(in, out, sizeof in);
        const char *at = strstr(in, edits[i][0]);
        if (!at) exit(99);
        snprintf(out, 3000, "%.*s%s%s", (int)(at - in), in, edits[i][1], at + strlen(edits[i][0]));
    }
    return out;
}
// Sizes that fit the tensor cores: heads of 16, two of four to a key head, rows on 16 bytes.
static const char *wide(void) {
    static char text[3000];
    static const char *const edits[][2] = {
        {"hidden_size\":24", "hidden_size\":64"},        {"intermediate_size\":20", "intermediate_size\":48"},
        {"attention_heads\":3", "attention_heads\":4"},  {"value_heads\":1", "value_heads\":2"},
        {"embeddings\":200", "embeddings\":600"},        {"[1,1,2]", "[2,3,3]"},
        {"out_hidden_size\":24", "out_hidden_size\":64"}};
    return *text ? text : changed(text, edits, 7);
}
static const float *picture(void) {
    static float pixels[24 * 3 * 2 * 4 * 4];
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        pixels[i] = (float)(2 * random_uniform(6, RANDOM_TEST, 1, (uint32_t)i) - 1);
    return pixels;
}
static void requests(Request r[3]) {
    r[0] = (Request){.ids = READING, .n = 5, .stream = 100, .completions = 2};
    r[1] = (Request){
        .ids = SEEING, .n = 13, .pixels = picture(), .grids = &GRID, .n_grids = 1, .stream = 7, .completions = 3};
    r[2] = (Request){.ids = READING + 2, .n = 1, .stream = 200, .completions = 1};
}
static GenerationConfig sampler(void) { // ends come at different times: 4 of 50 ids end an answer
    return (GenerationConfig){
        .sample =
            {.repetition_penalty = 1.1, .do_sample = 1, .temperature = 1.5, .top_k = 30, .top_p = 0.95, .seed = 11},
        .max_new_tokens = NEW,
        .stop = {44, 10, 20, 33},
        .n_stop = 4};
}
static void generate_into(Completion *out, Model *m, const Request *r, int n, GenerationConfig g) {
    Err e = {0};
    if (!generate(m, r, n, &g, NULL, NULL, out, &e)) err_report(&e), exit(99);
}
static void free_all(Completion *c, int n) {
    for (int i = 0; i < n; i++) completion_free(&c[i]);
}
static bool same_ids(const Completion *a, const Completion *b) {
    return a->ids.n == b->ids.n && a->stopped == b->stopped && !memcmp(a->ids.p, b->ids.p, (size_t)a->ids.n * 4);
}
static bool same_bits(const Completion *a, const Completion *b) {
    return same_ids(a, b) && a->logprob == b->logprob && !memcmp(a->lp, b->lp, (size_t)a->ids.n * 4) &&
           !memcmp(a->entropy, b->entropy, (size_t)a->ids.n * 4);
}
static void three_of(Completion out[ANSWERS], const Ops *d, const char *config) {
    Model m;
    Request r[3];
    requests(r), load_as(&m, d, config);
    generate_into(out, &m, r, 3, sampler());
    model_free(&m);
}
static void three(Completion out[ANSWERS], const Ops *d) { three_of(out, d, FLAT); }

// --------------------------------------------------------------------------------------------------------------- tests

TEST(recorded_steps_give_the_bits_of_steps_run_one_by_one_under_any_schedule) {
    static const int schedules[6][2] = {{0, 1}, {2, 0}, {1, 0}, {0, 0}, {1, 1}, {2, 1}};
    for (int type = 0; type < 2; type++) { // the second with the rungs for tensor cores
        const Ops *d = cuda(type ? BF16 : F32);
        const char *config = type ? wide() : FLAT;
        Completion want[ANSWERS], got[ANSWERS];
        three_of(want, counted(d, false), config);
        EXPECT(count.captures == 0 && count.replays == 0);
        int64_t shortest = NEW, longest = 0;
        for (int i = 0; i < ANSWERS; i++) {
            if (want[i].ids.n < shortest) shortest = want[i].ids.n;
            if (want[i].ids.n > longest) longest = want[i].ids.n;
        }
        EXPECT(shortest < longest && longest > 6); // rows leave on the way
        for (int s = 0; s < 6; s++) {
            schedule(schedules[s][0], schedules[s][1]);
            three_of(got, counted(d, true), config);
            EXPECT(count.captures > 1 && count.replays >= count.captures && count.releases == count.captures);
            for (int i = 0; i < ANSWERS; i++)
                if (!same_bits(&got[i], &want[i])) FAIL("%s, schedule %d, completion %d", type ? "bf16" : "f32", s, i);
            free_all(got, ANSWERS);
        }
        schedule(0, 1);
        free_all(want, ANSWERS);
    }
}

TEST(a_step_is_one_upload_one_launch_and_one_download) {
    Model m;
    Request r[3];
    Completion c[ANSWERS];
    GenerationConfig g = sampler();
    g.n_stop = 0, requests(r), load(&m, counted(cuda(F32), true));
    count = (struct Counts){0};
    generate_into(c, &m, r, 3, g); // 6 rows to the end: one size, which runs once and is recorded once
    enum { STEPS = NEW - 1 };      // the first token comes from the prompts
    EXPECT_INT(count.captures, 2); // to see whether it can be done, and that of the step
    EXPECT_INT(count.replays, STEPS - 1);
    EXPECT_INT(count.downloads, 1 + STEPS);
    EXPECT_INT(count.samples, 1 + 2);         // of the prompts, the first step and the recorded one
    EXPECT_INT(count.decode_rows, 2 * 2 * 8); // filled up to 8, two layers
    free_all(c, ANSWERS);
    int uploads = count.uploads, syncs = count.syncs;
    g.max_new_tokens = NEW + 5;
    count = (struct Counts){0};
    generate_into(c, &m, r, 3, g);
    EXPECT_INT(count.uploads - uploads, 5); // what else is uploaded comes once
    EXPECT_INT(count.syncs, syncs);
    EXPECT_INT(count.captures, 2);
    free_all(c, ANSWERS), model_free(&m);
}

TEST(what_a_step_needs_comes_with_its_upload) { // control: without it, the replays repeat themselves
    Completion want[ANSWERS], got[ANSWERS];
    Model m;
    Request r[3];
    requests(r), load(&m, counted(cuda(F32), true));
    count = (struct Counts){0};
    GenerationConfig g = sampler();
    g.n_stop = 0;
    generate_into(want, &m, r, 3, g);
    int lost = count.uploads - 4;
    count = (struct Counts){.uploads_lost_from = lost};
    generate_into(got, &m, r, 3, g);
    for (int i = 0; i < ANSWERS; i++) EXPECT(!same_bits(&want[i], &got[i]));
    free_all(want, ANSWERS), free_all(got, ANSWERS), model_free(&m);
}

TEST(tokens_are_those_of_the_cpu) {
    Completion want[ANSWERS], got[ANSWERS];
    three(want, ops_cpu()), three(got, cuda(F32));
    for (int i = 0; i < ANSWERS; i++) {
        if (!same_ids(&want[i], &got[i])) FAIL("completion %d", i);
        EXPECT_NEAR(got[i].logprob, want[i].logprob, 1e-3);
        for (int64_t k = 0; k < want[i].ids.n && k < got[i].ids.n; k++) {
            EXPECT_NEAR(got[i].lp[k], want[i].lp[k], 1e-4);
            EXPECT_NEAR(got[i].entropy[k], want[i].entropy[k], 1e-4);
        }
    }
    EXPECT(!same_ids(&got[2], &got[3])); // control: another stream is another text
    free_all(got, ANSWERS);
    Model m;
    Request r[3];
    GenerationConfig g = sampler();
    requests(r), load(&m, cuda(F32));
    g.sample.seed++; // control: so is another seed
    generate_into(got, &m, r, 3, g);
    int same = 0;
    for (int i = 0; i < ANSWERS; i++) same += same_ids(&want[i], &got[i]);
    EXPECT_INT(same, 0);
    free_all(want, ANSWERS), free_all(got, ANSWERS), model_free(&m);
}

TEST(a_prompt_and_its_picture_are_computed_once_for_all_their_answers) {
    const Ops *devices[] = {ops_cpu(), cuda(F32)};
    for (int k = 0; k < 2; k++)
        for (int answers = 1; answers <= 8; answers += 7) {
            Model m;
            Request r[3];
            Completion c[8];
            GenerationConfig g = sampler();
            g.max_new_tokens = 2, g.n_stop = 0;
            requests(r), r[1].completions = answers;
            load(&m, counted(devices[k], k == 1));
            count = (struct Counts){0};
            generate_into(c, &m, &r[1], 1, g);
            EXPECT_INT(count.merges, 1);
            EXPECT_INT(count.decoder_rows, 2 * (13 - 1 + answers)); // two layers; only the last token comes once each
            EXPECT_INT(count.decode_rows, 2 * answers);
            free_all(c, answers), model_free(&m);
        }
}

TEST(a_batch_gives_each_prompt_what_it_gets_alone) { // in steps of 8, 4, 2 and 1 rows, filled up or not
    for (int type = 0; type < 2; type++) {
        const Ops *d = cuda(type ? BF16 : F32);
        Completion batch[ANSWERS], alone[ANSWERS];
        Model m;
        Request r[3];
        requests(r), load_as(&m, d, type ? wide() : FLAT);
        generate_into(batch, &m, r, 3, sampler());
        generate_into(alone, &m, &r[0], 1, sampler());
        generate_into(alone + 2, &m, &r[1], 1, sampler());
        generate_into(alone + 5, &m, &r[2], 1, sampler());
        for (int i = 0; i < ANSWERS; i++)
            if (!same_bits(&batch[i], &alone[i])) FAIL("%s, completion %d", type ? "bf16" : "f32", i);
        free_all(alone, ANSWERS);
        r[1].stream += 2, r[1].completions = 1; // the third of the group by itself
        generate_into(alone, &m, &r[1], 1, sampler());
        EXPECT(same_bits(&batch[4], &alone[0]));
        free_all(batch, ANSWERS), free_all(alone, 1), model_free(&m);
    }
}

// A launch that was recorded for few keys must do for more: across the pieces that attention works in.
TEST(one_graph_serves_however_long_the_answers_get) {
    static int32_t prompt[248];
    for (int i = 0; i < 248; i++) prompt[i] = (7 * i) % 39;
    Request r[2] = {{.ids = prompt, .n = 248, .completions = 2}, {.ids = READING, .n = 5, .completions = 1}};
    GenerationConfig g = sampler();
    g.n_stop = 0, g.max_new_tokens = 16, g.sample.repetition_penalty = 1;
    const Ops *devices[] = {cuda(F32), cuda(F32), ops_cpu(), cuda(BF16), cuda(BF16)};
    Completion c[5][3];
    for (int k = 0; k < 5; k++) {
        Model m;
        bool graphs = k == 0 || k == 3;
        load_as(&m, counted(devices[k], graphs), wide());
        generate_into(c[k], &m, r, 2, g);
        EXPECT_INT(count.captures, graphs ? 2 : 0);
        model_free(&m);
    }
    for (int i = 0; i < 3; i++) {
        EXPECT(same_bits(&c[0][i], &c[1][i]));
        EXPECT(same_bits(&c[3][i], &c[4][i]));
        EXPECT(same_ids(&c[0][i], &c[2][i]));
        EXPECT_NEAR(c[0][i].logprob, c[2][i].logprob, 1e-3);
    }
    for (int k = 0; k < 5; k++) free_all(c[k], 3);
}

// A graph knows weights by address and adapters by their place in the sequence: neither may outlive its call.
TEST(an_adapter_that_comes_changes_and_goes_is_seen) {
    const Ops *devices[] = {cuda(F32), ops_cpu()};
    Completion c[2][4][3];
    for (int k = 0; k < 2; k++) {
        Model m;
        Err e = {0};
        Request r[3];
        requests(r), load(&m, devices[k]);
        GenerationConfig g = sampler();
        generate_into(c[k][0], &m, &r[1], 1, g);
        LoraOptions o = {.targets = "decoder", .r = 3, .alpha = 6, .seed = 3};
        EXPECT(lora_init(&m, &o, &e));
        for (int round = 1; round < 3; round++) {
            for (int64_t i = 0; i < m.n_params; i++)
                if (m.params[i].kind == PARAM_LORA_B) {
                    Mat b = m.params[i].w->v;
                    float *host = alloc_or_die((size_t)(b.rows * b.cols), sizeof *host, "test");
                    for (int64_t n = 0; n < b.rows * b.cols; n++)
                        host[n] = (float)(0.2 * round * random_uniform(4, RANDOM_TEST, (uint64_t)i, (uint32_t)n));
                    m.d->upload(b, mat(host, b.rows, b.cols, F32));
                    free(host);
                }
            generate_into(c[k][round], &m, &r[1], 1, g);
        }
        EXPECT(lora_merge(&m, &e));
        generate_into(c[k][3], &m, &r[1], 1, g);
        model_free(&m);
    }
    for (int round = 0; round < 4; round++)
        for (int i = 0; i < 3; i++) {
            if (!same_ids(&c[0][round][i], &c[1][round][i])) FAIL("round %d, completion %d", round, i);
            EXPECT_NEAR(c[0][round][i].logprob, c[1][round][i].logprob, 1e-3);
            if (round == 1 || round == 2) EXPECT(!same_bits(&c[0][round][i], &c[0][round - 1][i])); // control
        }
    for (int k = 0; k < 2; k++)
        for (int round = 0; round < 4; round++) free_all(c[k][round], 3);
}

static void see_nothing(void *ctx, const Ops *d, const char *op, Mat y) { (void)d, (void)op, (void)y, ++*(int *)ctx; }
TEST(naive_rungs_and_a_trace_run_op_by_op) {
    Completion want[ANSWERS], got[ANSWERS];
    int seen = 0;
    three(want, counted(cuda(F32), true));
    EXPECT(count.captures > 1);
    op_trace_set(see_nothing, &seen);
    three(got, counted(cuda(F32), true));
    op_trace_set(NULL, NULL);
    EXPECT(count.captures == 0 && count.replays == 0 && seen > 100);
    int64_t steps = 0;
    for (int i = 0; i < ANSWERS; i++) {
        EXPECT(same_bits(&want[i], &got[i]));
        steps += got[i].ids.n - 1;
    }
    EXPECT_INT(count.decode_rows, 2 * steps); // no idle rows: the trace has the shapes that the host's has
    free_all(got, ANSWERS);
    cuda_rungs_set((CudaRungs){.naive = true});
    three(got, counted(cuda(F32), true));
    cuda_rungs_set((CudaRungs){0});
    EXPECT(count.captures == 0 && count.replays == 0 && count.samples > 3);
    for (int i = 0; i < ANSWERS; i++) EXPECT(same_ids(&want[i], &got[i])); // other rungs: to rounding
    free_all(want, ANSWERS), free_all(got, ANSWERS);
}

static bool three_tokens(void *ctx, int completion, int32_t id) {
    (void)completion, (void)id;
    return ++*(int *)ctx < 4 * ANSWERS - 2;
}
TEST(a_caller_can_stop_between_replays_and_go_on_afterwards) {
    Completion want[ANSWERS], got[ANSWERS];
    Model m;
    Request r[3];
    Err e = {0};
    GenerationConfig g = sampler();
    int calls = 0;
    g.n_stop = 0;
    requests(r), load(&m, counted(cuda(F32), true));
    EXPECT(generate(&m, r, 3, &g, three_tokens, &calls, got, &e) && got[0].ids.n == 4);
    EXPECT(count.replays > 0 && count.releases == count.captures);
    free_all(got, ANSWERS);
    generate_into(got, &m, r, 3, g), generate_into(want, &m, r, 3, g);
    for (int i = 0; i < ANSWERS; i++) EXPECT(same_bits(&want[i], &got[i]) && got[i].ids.n == NEW);
    free_all(want, ANSWERS), free_all(got, ANSWERS), model_free(&m);
}

// --------------------------------------------------------------------------------------------- the contract of capture

static int in_child(void (*f)(void)) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(98);
        f(), _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
static int32_t word;
static Mat on_device;
static void upload_inside(void) { cuda(F32)->upload(on_device, mat(&word, 1, 1, I32)); }
static void download_inside(void) { cuda(F32)->download(mat(&word, 1, 1, I32), on_device); }
static void sync_inside(void) { cuda(F32)->sync(); }
static void alloc_inside(void) { cuda(F32)->alloc(64); }
static void release_inside(void) { cuda(F32)->release(on_device.p); }
static void begin_inside(void) { cuda(F32)->capture_begin(); }
static void zero_inside(void) { cuda(F32)->zero(on_device); }
static void (*inside)(void);
static void capture_it(void) { cuda(F32)->capture_begin(), inside(), cuda(F32)->capture_end(); }
static void begin_first(void) { inside(); }
TEST(what_may_not_be_recorded_ends_the_program) {
    if (!cuda_emu_schedule) SKIP("a child of this process cannot use the GPU");
    static void (*const forbidden[])(void) = {upload_inside, download_inside, sync_inside,
                                              alloc_inside,  release_inside,  begin_inside};
    on_device = mat(cuda(F32)->alloc(64), 1, 1, I32);
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        inside = forbidden[i];
        EXPECT_INT(in_child(capture_it), EXIT_BUG);
        if (i < 5) EXPECT_INT(in_child(begin_first), 0); // control: outside of a capture they work
    }
    inside = zero_inside; // control: this may be recorded
    EXPECT_INT(in_child(capture_it), 0);
    cuda(F32)->release(on_device.p);
}
