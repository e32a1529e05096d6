// test_lora.c - LoRA: which layers get a pair, what a new pair holds, adapters in and out bit by bit, merging as PEFT
// does it, and checkpoints that hold what the model holds.
//
// The committed model "thirds" (tied, bf16) carries the tests; every stored model and adapter beside the repository is
// read, written and merged too. SURGR1_LORA_OUT=DIR keeps what is written for test/reference/check_adapter.py.
#define _GNU_SOURCE // nftw
#include "compare.h"
#include "test.h"
#include <dirent.h>
#include <ftw.h>
#include <sys/stat.h>

static char folder[300]; // of this run, made on first use and removed at exit

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *w) {
    (void)s, (void)type, (void)w;
    return remove(path);
}
static void remove_folder(void) { nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); }
// A path in the folder of this run, in one of 8 rotating buffers.
static const char *tmp_path(const char *name) {
    static char ring[8][600];
    static int turn;
    if (!folder[0]) {
        const char *base = getenv("TMPDIR"), *kept = getenv("SURGR1_LORA_OUT");
        if (!base || !*base) base = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"; // in memory: every write is fsynced
        snprintf(folder, sizeof folder, "%.200s/test_lora_XXXXXX", base);
        if (kept && *kept) snprintf(folder, sizeof folder, "%.200s", kept);
        if (kept && *kept ? mkdir(folder, 0755) : !mkdtemp(folder)) perror(folder), exit(1);
        if (!kept || !*kept) atexit(remove_folder);
    }
    char *p = ring[turn++ % 8];
    snprintf(p, sizeof ring[0], "%s/%s", folder, name);
    return p;
}

static const char THIRDS[] = "test/fixtures/oracle/models/thirds/checkpoint";

// A model stays where it was loaded: its parameter table points into it.
static void open_model(Model *m, const char *dir) {
    Err e = {0};
    if (!model_load(m, dir, ops_cpu(), (LoadOptions){0}, &e)) exit(err_report(&e));
}
static const LoraOptions PLAIN = {.targets = "decoder", .r = 3, .alpha = 6, .seed = 1};

static bool init(Model *m, const char *targets) {
    Err e = {0};
    LoraOptions o = PLAIN;
    o.targets = targets;
    bool ok = lora_init(m, &o, &e);
    if (!ok) FAIL("%s: %s %s", targets, e.code, e.found);
    return ok;
}
static bool has_pair(const Param *p) { return p->kind == PARAM_BASE && p->linear && p->linear->lora.a.v.p; }
static int64_t pairs(const Model *m, enum Tower tower) {
    int64_t n = 0;
    for (int64_t i = 0; i < m->n_base; i++) n += m->params[i].tower == tower && has_pair(&m->params[i]);
    return n;
}
static const Param *find(const Model *m, const char *name) {
    for (int64_t i = 0; i < m->n_params; i++)
        if (!strcmp(m->params[i].name, name)) return &m->params[i];
    return NULL;
}
static float *values(const Model *m, const Param *p) { // of the value in memory, as floats
    int64_t n = p->rows * p->cols;
    float *out = alloc_or_die((size_t)n, sizeof *out, "test");
    for (int64_t i = 0; i < n; i++) {
        const void *at = mat_at(p->w->v, i / p->cols, i % p->cols);
        out[i] = p->w->v.type == BF16 ? bf16_to_f32(*(const uint16_t *)at) : *(const float *)at;
    }
    (void)m;
    return out;
}
static void fill_b(Model *m, float size) { // B of a new adapter is zero: give it values
    for (int64_t i = m->n_base; i < m->n_params; i++)
        for (int64_t k = 0; m->params[i].kind == PARAM_LORA_B && k < m->params[i].rows * m->params[i].cols; k++)
            ((float *)m->params[i].w->v.p)[k] =
                size * (float)(2 * random_uniform(9, RANDOM_TEST, (uint64_t)i, (uint32_t)k) - 1);
}

// ------------------------------------------------------------------------------------------------------------ choosing

TEST(groups_names_and_expressions_choose_layers) {
    static const struct {
        const char *targets;
        int64_t decoder, vision, merger;
    } cases[] = {
        {"decoder", 21, 0, 0}, // 3 blocks of 7, 3 blocks of 5
        {"vision", 0, 15, 0},
        {"merger", 0, 0, 2},
        {"decoder,vision,merger", 21, 15, 2},
        {"q_proj", 3, 0, 0},
        {"q_proj,v_proj", 6, 0, 0},
        {"gate_proj", 3, 3, 0}, // a name hits both towers
        {"attn.proj,attn.qkv", 0, 6, 0},
        {"mlp.0", 0, 0, 1},
        {"layers.1.self_attn.o_proj", 1, 0, 0},
        {"model.layers.1.self_attn.o_proj", 1, 0, 0},
        {"model.language_model.layers.1.self_attn.o_proj", 1, 0, 0},
        {"merger,q_proj", 3, 0, 2},
        {"/.*language_model.*(q_proj|v_proj)$/", 6, 0, 0},
        {"/model\\.visual\\.blocks\\.[02]\\..*/", 0, 10, 0},
        {"/(?!.*visual)model.*\\.\\w+_proj/", 21, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Model m;
        open_model(&m, THIRDS);
        if (init(&m, cases[i].targets)) {
            int64_t got[3] = {pairs(&m, TOWER_DECODER), pairs(&m, TOWER_VISION), pairs(&m, TOWER_MERGER)};
            if (got[0] != cases[i].decoder || got[1] != cases[i].vision || got[2] != cases[i].merger)
                FAIL("%s: %lld %lld %lld", cases[i].targets, (long long)got[0], (long long)got[1], (long long)got[2]);
            EXPECT_INT(m.n_params - m.n_base, 2 * (got[0] + got[1] + got[2]));
            EXPECT_INT(m.rank, got[0] ? 3 : 0);
            EXPECT_INT(m.vision.rank, got[1] + got[2] ? 3 : 0);
        }
        model_free(&m);
    }
}

TEST(targets_that_cannot_be_are_refused_with_the_names_that_can) {
    static const struct {
        LoraOptions o;
        const char *code, *found;
    } cases[] = {
        {{.targets = "q_prj", .r = 1, .alpha = 1}, "E-AD-03", "\"q_prj\", which hits nothing"},
        {{.targets = "decoder,roj", .r = 1, .alpha = 1}, "E-AD-03", "\"roj\", which hits nothing"},
        {{.targets = "", .r = 1, .alpha = 1}, "E-AD-03", "\"\", which hits nothing"},
        {{.targets = "decoder,", .r = 1, .alpha = 1}, "E-AD-03", "\"\", which hits nothing"},
        {{.targets = "lm_head", .r = 1, .alpha = 1}, "E-AD-03", "lm_head"},
        {{.targets = "embed_tokens", .r = 1, .alpha = 1}, "E-AD-03", "model.language_model.embed_tokens"},
        {{.targets = "proj", .r = 1, .alpha = 1}, "E-AD-03", "model.visual.patch_embed.proj"},
        {{.targets = "/.*/", .r = 1, .alpha = 1}, "E-AD-03", "model.visual.patch_embed.proj"},
        {{.targets = "/q_proj/", .r = 1, .alpha = 1}, "E-AD-03", "\"/q_proj/\", which hits nothing"}, // a whole path
        {{.targets = "/.*(q_proj/", .r = 1, .alpha = 1}, "E-AD-03", "a group without its end"},
        {{.targets = "q_proj", .r = 0, .alpha = 1}, "E-AD-02", "0"},
        {{.targets = "q_proj", .r = 1025, .alpha = 1}, "E-AD-02", "1025"},
        {{.targets = "q_proj", .r = 1, .alpha = 0}, "E-AD-02", "0 and 0"},
        {{.targets = "q_proj", .r = 1, .alpha = NAN}, "E-AD-02", "nan and 0"},
        {{.targets = "q_proj", .r = 1, .alpha = 1, .dropout = 1}, "E-AD-02", "1 and 1"},
    };
    Model m;
    open_model(&m, THIRDS);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Err e = {0};
        EXPECT(!lora_init(&m, &cases[i].o, &e));
        EXPECT_STR(e.code, cases[i].code);
        if (!strstr(e.found, cases[i].found)) FAIL("%s: found %s", cases[i].o.targets, e.found);
        if (strstr(e.found, "nothing"))
            EXPECT(strstr(e.expected,
                          "attn.qkv, attn.proj, gate_proj, up_proj, down_proj, mlp.0, mlp.2, q_proj, k_proj, "
                          "v_proj, o_proj") != NULL);
        EXPECT(!m.lora && m.n_params == m.n_base); // nothing happened
    }
    model_free(&m);
}

TEST(a_new_pair_is_a_uniform_a_and_a_zero_b) {
    Model m, other;
    open_model(&m, THIRDS), open_model(&other, THIRDS);
    Err e = {0};
    EXPECT(lora_init(
        &m,
        &(LoraOptions){.targets = "decoder,vision", .r = 16, .alpha = 8, .rslora = true, .dropout = 0.25, .seed = 5},
        &e));
    EXPECT(lora_init(&other, &(LoraOptions){.targets = "v_proj", .r = 16, .alpha = 8, .seed = 5}, &e));
    for (int64_t i = 0; i < m.n_base; i++) EXPECT(!m.params[i].trained);
    for (int64_t i = m.n_base; i < m.n_params; i++) {
        const Param *p = &m.params[i];
        int64_t n = p->rows * p->cols;
        const float *v = p->w->v.p;
        double sum = 0, squares = 0, most = 0;
        EXPECT(p->trained && p->owned && p->w->v.type == F32 && p->linear);
        for (int64_t k = 0; k < n; k++)
            sum += v[k], squares += v[k] * v[k], most = fabs(v[k]) > most ? fabs(v[k]) : most;
        if (p->kind == PARAM_LORA_B) {
            EXPECT(most == 0 && p->cols == 16);
            continue;
        }
        double bound = 1 / sqrt((double)p->cols); // of U(-b, b): mean 0, variance b^2/3
        EXPECT(p->rows == 16 && p->kind == PARAM_LORA_A);
        EXPECT(most <= bound && most > 0.99 * bound);
        EXPECT_NEAR(sum / (double)n / bound, 0, 4 / sqrt(3.0 * (double)n));
        EXPECT_NEAR(squares / (double)n / bound / bound, 1.0 / 3, 4 * 0.3 / sqrt((double)n));
        EXPECT_NEAR(p->linear->lora.scale, 8 / 4.0, 0); // rank-stabilised: alpha / sqrt(r)
        EXPECT_NEAR(p->linear->lora.dropout, 0.25, 0);
    }
    EXPECT(m.dropout && m.vision.dropout && !other.dropout);
    // The same layer starts with the same numbers, whatever else is chosen; another layer with others.
    const char *name = "model.layers.2.self_attn.v_proj.lora_A.weight";
    const float *a = find(&m, name)->w->v.p, *b = find(&other, name)->w->v.p;
    EXPECT(!memcmp(a, b, 16 * 72 * sizeof *a));
    const float *c = find(&m, "model.layers.1.self_attn.v_proj.lora_A.weight")->w->v.p;
    EXPECT(memcmp(a, c, 16 * 72 * sizeof *a));
    EXPECT_NEAR(find(&other, name)->linear->lora.scale, 8 / 16.0, 0);
    uint32_t site = find(&m, name)->linear->lora.site;
    EXPECT(site < m.n_base && !strcmp(m.params[site].name, "model.layers.2.self_attn.v_proj.weight"));
    model_free(&m), model_free(&other);
}

// ------------------------------------------------------------------------------------------------------------- in, out

static void expect_same_adapter(const Model *a, const Model *b, const char *what) {
    EXPECT_INT(a->n_params, b->n_params);
    EXPECT(a->rank == b->rank && a->vision.rank == b->vision.rank && a->dropout == b->dropout);
    for (int64_t i = 0; i < a->n_params && i < b->n_params; i++) {
        const Param *p = &a->params[i], *q = &b->params[i];
        EXPECT_STR(p->name, q->name);
        if (p->trained != q->trained) FAIL("%s: %s is trained in one only", what, p->name);
        if (p->linear &&
            (p->linear->lora.scale != q->linear->lora.scale || p->linear->lora.site != q->linear->lora.site ||
             p->linear->lora.dropout != q->linear->lora.dropout))
            FAIL("%s: scale, dropout or site of %s", what, p->name);
        if (p->trained && memcmp(p->w->v.p, q->w->v.p, (size_t)(p->rows * p->cols) * sizeof(float)))
            FAIL("%s: values of %s", what, p->name);
    }
}

static void expect_same_files(const char *a, const char *b) {
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    for (int k = 0; k < 2; k++) {
        char path[2][800], *data[2];
        size_t size[2];
        Err e = {0};
        snprintf(path[0], sizeof path[0], "%s/%s", a, names[k]),
            snprintf(path[1], sizeof path[1], "%s/%s", b, names[k]);
        if (!file_read(path[0], 1 << 28, "E-IO-03", &data[0], &size[0], &e)) exit(err_report(&e));
        if (!file_read(path[1], 1 << 28, "E-IO-03", &data[1], &size[1], &e)) exit(err_report(&e));
        if (size[0] != size[1] || memcmp(data[0], data[1], size[0])) FAIL("%s and %s differ", path[0], path[1]);
        free(data[0]), free(data[1]);
    }
}

// Saves in both layouts, loads each, and saves again. (NAME-merged is for check_adapter.py.)
static void round_trip(const Model *m, const char *dir, const char *name) {
    Err e = {0};
    char merged[100];
    snprintf(merged, sizeof merged, "%.80s-merged", name);
    if (!model_save(m, tmp_path(merged), (SaveOptions){.type = "f32"}, &e)) exit(err_report(&e)); // merges on the way
    for (int old = 0; old < 2; old++) {
        char first[100], second[100], out[2][600];
        snprintf(first, sizeof first, "%.80s-%s", name, old ? "old" : "new");
        snprintf(second, sizeof second, "%.80s-again", first);
        snprintf(out[0], sizeof out[0], "%s", tmp_path(first)), snprintf(out[1], sizeof out[1], "%s", tmp_path(second));
        if (!lora_save(m, out[0], old, &e)) exit(err_report(&e));
        Model n;
        open_model(&n, dir);
        if (!lora_load(&n, out[0], &e)) exit(err_report(&e));
        expect_same_adapter(m, &n, first);
        if (!lora_save(&n, out[1], old, &e)) exit(err_report(&e));
        expect_same_files(out[0], out[1]);
        TensorFile f;
        char path[800];
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", out[0]);
        if (!tensors_open(&f, path, &e)) exit(err_report(&e));
        for (int64_t i = 0; i < f.count; i++)
            EXPECT(strstr(f.tensors[i].name,
                          old ? "base_model.model.model.layers." : "model.model.language_model.layers.") ||
                   strstr(f.tensors[i].name, old ? "base_model.model.visual." : "base_model.model.model.visual."));
        tensors_close(&f);
        model_free(&n);
    }
}

TEST(an_adapter_that_was_saved_loads_to_the_same_bits) {
    static const char *const targets[] = {"decoder", "vision,merger", "q_proj,mlp.2", "/.*\\.1\\.mlp\\..*/"};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        Model m;
        open_model(&m, THIRDS);
        Err e = {0};
        char name[40];
        snprintf(name, sizeof name, "thirds-init%zu", i);
        EXPECT(lora_init(&m,
                         &(LoraOptions){.targets = targets[i],
                                        .r = 2 + (int64_t)i,
                                        .alpha = 7.5,
                                        .rslora = i == 2,
                                        .dropout = i == 1 ? 0.125 : 0,
                                        .seed = 3},
                         &e));
        fill_b(&m, 1);
        round_trip(&m, THIRDS, name);
        model_free(&m);
    }
}

// Base parameters that are trained beside the pairs are saved with the module they belong to.
TEST(trained_modules_are_saved_whole_beside_the_pairs) {
    for (int old = 0; old < 2; old++) {
        Model m, n;
        Err e = {0};
        open_model(&m, THIRDS), open_model(&n, THIRDS);
        if (!init(&m, "q_proj")) exit(1);
        fill_b(&m, 1);
        const char *trained[] = {"visual.merger.mlp.0.bias", "model.norm.weight", "visual.blocks.1.norm2.weight"};
        for (int64_t i = 0; i < m.n_base; i++)
            for (size_t k = 0; k < sizeof trained / sizeof *trained; k++)
                if (!strcmp(m.params[i].name, trained[k])) m.params[i].trained = true;
        const char *dir = tmp_path(old ? "thirds-beside-old" : "thirds-beside-new");
        if (!lora_save(&m, dir, old, &e) || !lora_load(&n, dir, &e)) exit(err_report(&e));
        EXPECT_STR(n.lora->saved.p, old ? "[\"visual.blocks.1.norm2\",\"visual.merger.mlp.0\",\"model.norm\"]"
                                        : "[\"model.visual.blocks.1.norm2\",\"model.visual.merger.mlp.0\","
                                          "\"model.language_model.norm\"]");
        int64_t whole = 0;
        for (int64_t i = 0; i < m.n_base; i++) {
            const Param *p = &m.params[i], *q = &n.params[i];
            bool expected = p->trained || !strcmp(p->name, "visual.merger.mlp.0.weight"); // of the same module
            EXPECT(q->trained == expected && (!expected || (q->owned && q->w->v.type == F32)));
            whole += expected;
            float *a = values(&m, p), *b = values(&n, q);
            EXPECT(!memcmp(a, b, (size_t)(p->rows * p->cols) * sizeof *a));
            free(a), free(b);
        }
        EXPECT_INT(whole, 4);
        // An embedding that the head shares cannot go into an adapter: PEFT would part the two.
        for (int64_t i = 0; i < m.n_base; i++)
            if (m.params[i].w == &m.embed) m.params[i].trained = true;
        EXPECT(!lora_save(&m, dir, old, &e));
        EXPECT_STR(e.code, "E-AD-03");
        model_free(&m), model_free(&n);
    }
}

// Random sets of layers: target_modules of the saved adapter must name those and no other, in both module trees.
TEST(saved_targets_name_exactly_the_layers_that_have_a_pair) {
    int lists = 0, expressions = 0;
    for (uint32_t round = 0; round < 24; round++) {
        Model m;
        open_model(&m, THIRDS);
        Err e = {0};
        Text targets = {0};
        for (int64_t i = 0; i < m.n_base; i++) {
            const Param *p = &m.params[i];
            const char *block = strstr(p->name, ".1.") ? "1" : strstr(p->name, ".0.") ? "0" : "2";
            double u = random_uniform(11, RANDOM_TEST, round, (uint32_t)i);
            bool in = round % 3 == 0   ? u < 0.2 || (i > 20 && !targets.len)
                      : round % 3 == 1 ? (round & 4 ? p->tower == TOWER_DECODER : true) &&
                                             strstr(p->name, round & 8 ? "gate" : "_proj.")
                                       : *block == '1' && (u < 0.8 || !targets.len);
            if (!p->linear || !in) continue;
            text_addf(&targets, "%s%.*s", targets.len ? "," : "", (int)(strlen(p->name) - 7), p->name);
        }
        if (!init(&m, targets.p)) exit(1);
        for (int old = 0; old < 2; old++) {
            const char *dir = tmp_path(old ? "targets-old" : "targets-new");
            AdapterInfo a;
            if (!lora_save(&m, dir, old, &e) || !adapter_open(&a, dir, &e)) exit(err_report(&e));
            const Json *t = json_get(a.config.root, "target_modules");
            *(t->type == JSON_ARRAY ? &lists : &expressions) += 1;
            Pattern pattern = {0};
            if (t->type == JSON_STRING) EXPECT(pattern_compile(&pattern, t->str, t->len, AT(0), &e));
            for (int64_t i = 0; i < m.n_base; i++) {
                const Param *p = &m.params[i];
                char module[200], tree[220];
                snprintf(module, sizeof module, "%.*s", (int)(strrchr(p->name, '.') - p->name), p->name);
                tree_path(tree, sizeof tree, module);
                const char *paths[2] = {module, tree};
                for (int k = 0; k < 2; k++) {
                    bool named = false;
                    for (const Json *n = t->type == JSON_ARRAY ? t->child : NULL; n; n = n->next) {
                        size_t len = strlen(paths[k]);
                        named |= len > n->len && !strcmp(paths[k] + len - n->len, n->str) &&
                                 paths[k][len - n->len - 1] == '.';
                    }
                    if (t->type == JSON_STRING) named = pattern_matches(&pattern, paths[k], strlen(paths[k]));
                    bool bias = !strcmp(strrchr(p->name, '.'), ".bias");
                    if (!bias && named != has_pair(p))
                        FAIL("round %u: %s by %.*s", round, paths[k], (int)t->len, t->str);
                }
            }
            pattern_free(&pattern);
            adapter_close(&a);
        }
        text_free(&targets);
        model_free(&m);
    }
    EXPECT(lists > 4 && expressions > 10);
}

// ------------------------------------------------------------------------------------------------ refusals of adapters

#define CONFIG(more) "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":3" more "}"
#define OLD          "base_model.model.model.layers.0.self_attn."
#define NEW          "base_model.model.model.language_model.layers.0.self_attn."
static const float numbers[512 * 72] = {0.5f, -1, 2, 3};

static const char *put_adapter(const char *config, const TensorOut *tensors, int64_t n) {
    const char *dir = tmp_path("made");
    char path[700];
    Err e = {0};
    mkdir(dir, 0755);
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    if (!file_write_atomic(path, config, strlen(config), &e)) exit(err_report(&e));
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    if (!tensors_write(path, tensors, n, &e)) exit(err_report(&e));
    return dir;
}

TEST(every_tensor_of_an_adapter_must_land) {
    const TensorOut a = {OLD "q_proj.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                    b = {OLD "q_proj.lora_B.weight", FT_F32, 2, {72, 1}, numbers},
                    a_new = {NEW "q_proj.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                    b_new = {NEW "q_proj.lora_B.weight", FT_F32, 2, {72, 1}, numbers},
                    k_a = {OLD "k_proj.lora_A.weight", FT_F32, 2, {1, 71}, numbers},
                    k_b = {OLD "k_proj.lora_B.weight", FT_F32, 2, {24, 1}, numbers},
                    v_a = {OLD "v_proj.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                    v_b = {OLD "v_proj.lora_B.weight", FT_F32, 2, {25, 1}, numbers},
                    x_a = {"base_model.model.model.layers.3.mlp.up_proj.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                    x_b = {"base_model.model.model.layers.3.mlp.up_proj.lora_B.weight", FT_F32, 2, {100, 1}, numbers},
                    h_a = {"base_model.model.lm_head.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                    h_b = {"base_model.model.lm_head.lora_B.weight", FT_F32, 2, {512, 1}, numbers},
                    n_a = {"base_model.model.model.norm.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                    n_b = {"base_model.model.model.norm.lora_B.weight", FT_F32, 2, {1, 1}, numbers},
                    norm = {"base_model.model.model.norm.weight", FT_F32, 1, {72}, numbers},
                    norm_bad = {"base_model.model.model.norm.weight", FT_F32, 2, {1, 72}, numbers},
                    ln_q = {"base_model.model.model.visual.merger.ln_q.weight", FT_F32, 1, {48}, numbers},
                    stray = {"base_model.model.model.visual.merger.extra.weight", FT_F32, 1, {48}, numbers},
                    q_w = {OLD "q_proj.weight", FT_F32, 2, {72, 72}, numbers},
                    q_bias = {OLD "q_proj.bias", FT_F32, 1, {72}, numbers};
    const struct {
        TensorOut t[4];
        int n;
        const char *saved, *code, *tensor, *expected, *found;
    } cases[] = {
        {{a, b}, 2, "", NULL, "", "", ""},
        {{a_new, b_new}, 2, "", NULL, "", "", ""},
        {{a, b, norm}, 3, ",\"modules_to_save\":[\"model.norm\"]", NULL, "", "", ""},
        {{a, b, k_a, k_b},
         4,
         "",
         "E-AD-04",
         "k_proj.lora_A.weight",
         "shape [1,72] of model.layers.0.self_attn.k_proj",
         "[1,71]"},
        {{a, b, v_a, v_b}, 4, "", "E-AD-04", "v_proj.lora_B.weight", "shape [24,1]", "[25,1]"},
        {{a, b, x_a, x_b},
         4,
         "",
         "E-AD-04",
         "layers.3.mlp.up_proj.lora_A",
         "a linear layer",
         "model.layers.3.mlp.up_proj"},
        {{a, b, a_new, b_new},
         4,
         "",
         "E-AD-04",
         "layers.0.self_attn.q_proj.lora_A.weight",
         "each layer once",
         "model.language_model.layers.0.self_attn.q_proj"},
        {{a, b, h_a, h_b}, 4, "", "E-AD-03", "lm_head", "linear layers of the blocks", "lm_head"},
        {{a, b, n_a, n_b}, 4, "", "E-AD-04", "norm.lora_A", "a linear layer", "model.norm"},
        {{a, b, norm_bad},
         3,
         ",\"modules_to_save\":[\"model.norm\"]",
         "E-AD-04",
         "norm.weight",
         "shape [72]",
         "[1,72]"},
        {{a, b, ln_q},
         3,
         ",\"modules_to_save\":[\"merger\"]",
         "E-AD-04",
         "",
         "every parameter",
         "visual.merger.mlp.0.weight"},
        {{a, b, stray},
         3,
         ",\"modules_to_save\":[\"merger\"]",
         "E-AD-04",
         "merger.extra",
         "a parameter of this model",
         "extra"},
        {{a, b, q_w, q_bias},
         4,
         ",\"modules_to_save\":[\"layers.0.self_attn.q_proj\"]",
         "E-AD-04",
         "q_proj.weight",
         "each layer once",
         "q_proj.lora_A"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char config[300];
        snprintf(config, sizeof config, CONFIG("%s"), cases[i].saved);
        Model m;
        open_model(&m, THIRDS);
        Err e = {0};
        bool ok = lora_load(&m, put_adapter(config, cases[i].t, cases[i].n), &e);
        if (ok != !cases[i].code) FAIL("case %zu: %s expected %s; found %s", i, e.code, e.expected, e.found);
        if (cases[i].code) {
            EXPECT_STR(e.code, cases[i].code);
            if (!strstr(e.field, cases[i].tensor) || !strstr(e.expected, cases[i].expected) ||
                !strstr(e.found, cases[i].found))
                FAIL("case %zu: tensor %s: expected %s; found %s", i, e.field, e.expected, e.found);
            EXPECT(!m.lora && m.n_params == m.n_base && m.rank == 0);
        }
        model_free(&m);
    }
}

// As PEFT does: the layers that target_modules names beside those of the file stay as they are, and that is said.
TEST(targets_without_a_pair_are_warned_of) {
    const TensorOut tensors[] = {{OLD "q_proj.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                                 {OLD "q_proj.lora_B.weight", FT_F32, 2, {72, 1}, numbers}};
    static const struct {
        const char *more;
        int warnings;
    } cases[] = {{",\"target_modules\":[\"q_proj\"]", 1},
                 {",\"target_modules\":\".*q_proj\"", 1},
                 {",\"target_modules\":[\"layers.0.self_attn.q_proj\"]", 0},
                 {",\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0]", 0},
                 {"", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char config[300];
        snprintf(config, sizeof config, CONFIG("%s"), cases[i].more);
        Model m;
        Err e = {0};
        int64_t before = warn_count("E-AD-04");
        open_model(&m, THIRDS);
        if (!lora_load(&m, put_adapter(config, tensors, 2), &e)) exit(err_report(&e));
        EXPECT_INT(warn_count("E-AD-04") - before, cases[i].warnings);
        EXPECT_INT(pairs(&m, TOWER_DECODER), 1);
        model_free(&m);
    }
}

TEST(patterns_and_halves_set_rank_scale_and_values) {
    static const uint16_t half[72] = {0x3C00, 0xC000, 1}, brain[72] = {0x3F80, 0xC000, 0x3DCC};
    const TensorOut tensors[] = {{OLD "q_proj.lora_A.weight", FT_F16, 2, {1, 72}, half},
                                 {OLD "q_proj.lora_B.weight", FT_BF16, 2, {72, 1}, brain},
                                 {OLD "v_proj.lora_A.weight", FT_F32, 2, {4, 72}, numbers},
                                 {OLD "v_proj.lora_B.weight", FT_F32, 2, {24, 4}, numbers}};
    Model m;
    open_model(&m, THIRDS);
    Err e = {0};
    const char *dir = put_adapter(CONFIG(",\"use_rslora\":true,\"rank_pattern\":{\"v_proj\":4},"
                                         "\"alpha_pattern\":{\"^model.layers.\\\\d+.self_attn.v_proj\":10}"),
                                  tensors, 4);
    if (!lora_load(&m, dir, &e)) exit(err_report(&e));
    const Param *a = find(&m, "model.layers.0.self_attn.q_proj.lora_A.weight"),
                *b = find(&m, "model.layers.0.self_attn.q_proj.lora_B.weight"),
                *v = find(&m, "model.layers.0.self_attn.v_proj.lora_A.weight");
    EXPECT(a && b && v);
    const float *A = a->w->v.p, *B = b->w->v.p;
    EXPECT(A[0] == 1 && A[1] == -2 && A[2] == 0x1p-24f && B[0] == 1 && B[1] == -2 && B[2] == 0.099609375f);
    EXPECT_NEAR(a->linear->lora.scale, 3, 0);
    EXPECT_NEAR(v->linear->lora.scale, 10 / 2.0, 0);
    EXPECT_INT(m.rank, 4);
    round_trip(&m, THIRDS, "thirds-patterns"); // the pattern names no path of today's tree: it is written by name
    EXPECT_STR(m.lora->alpha_pattern.p, "{\"layers.0.self_attn.v_proj\":10}");
    model_free(&m);
}

// ------------------------------------------------------------------------------------------------------------- merging

static float *merged_by_hand(const Model *m, const Param *p, const float *base) { // W + scale B A, all in double
    const Lora *l = &p->linear->lora;
    float *out = alloc_or_die((size_t)(p->rows * p->cols), sizeof *out, "test");
    for (int64_t i = 0; i < p->rows; i++)
        for (int64_t j = 0; j < p->cols; j++) {
            double sum = 0;
            for (int64_t k = 0; k < l->a.v.rows; k++)
                sum +=
                    (double)((const float *)l->b.v.p)[i * l->a.v.rows + k] * ((const float *)l->a.v.p)[k * p->cols + j];
            out[i * p->cols + j] = (float)(base[i * p->cols + j] + (double)l->scale * sum);
        }
    (void)m;
    return out;
}

TEST(merging_adds_every_pair_once_and_again) {
    Model m;
    open_model(&m, THIRDS);
    Err e = {0};
    for (int round = 0; round < 2; round++) { // the second adapter meets weights that the first has changed
        if (!init(&m, round ? "mlp.2,o_proj,v_proj" : "q_proj,o_proj,merger,vision")) exit(1);
        fill_b(&m, 1);
        float **want = alloc_or_die((size_t)m.n_base, sizeof *want, "test");
        for (int64_t i = 0; i < m.n_base; i++) {
            float *base = values(&m, &m.params[i]);
            want[i] = has_pair(&m.params[i]) ? merged_by_hand(&m, &m.params[i], base) : base;
            if (want[i] == base) continue;
            EXPECT(memcmp(want[i], base, 64));
            free(base);
        }
        if (!lora_merge(&m, &e)) exit(err_report(&e));
        EXPECT(!m.lora && m.n_params == m.n_base && m.rank == 0 && m.vision.rank == 0);
        for (int64_t i = 0; i < m.n_base; i++) {
            float *got = values(&m, &m.params[i]);
            EXPECT(!has_pair(&m.params[i]) && !m.params[i].trained);
            if (memcmp(got, want[i], (size_t)(m.params[i].rows * m.params[i].cols) * sizeof *got))
                FAIL("round %d: %s", round, m.params[i].name);
            free(got), free(want[i]);
        }
        free(want);
    }
    model_free(&m);
}

TEST(threads_do_not_change_a_merge) {
    char files[2][600];
    for (int k = 0; k < 2; k++) {
        Model m;
        open_model(&m, THIRDS);
        Err e = {0};
        pool_start(k ? 3 : 1);
        if (!init(&m, "decoder,vision")) exit(1);
        fill_b(&m, 1);
        snprintf(files[k], sizeof files[k], "%s", tmp_path(k ? "merged-3" : "merged-1"));
        if (!model_save(&m, files[k], (SaveOptions){.type = "f32"}, &e)) exit(err_report(&e));
        pool_stop();
        model_free(&m);
    }
    TensorFile a, b;
    Err e = {0};
    if (!tensors_open_folder(&a, files[0], &e) || !tensors_open_folder(&b, files[1], &e)) exit(err_report(&e));
    EXPECT(a.count == b.count && a.count > 50);
    for (int64_t i = 0; i < a.count; i++) EXPECT(!memcmp(a.tensors[i].data, b.tensors[i].data, a.tensors[i].bytes));
    tensors_close(&a), tensors_close(&b);
}

// --------------------------------------------------------------------------------------------------------- checkpoints

// A checkpoint that is written as it was read holds the same bytes under the same names.
static void rewrite(const char *dir, const char *out, int64_t shard_bytes) {
    Model m;
    open_model(&m, dir);
    Err e = {0};
    TensorFile a, b;
    if (!model_save(&m, out, (SaveOptions){.type = "keep", .shard_bytes = shard_bytes}, &e)) exit(err_report(&e));
    if (!tensors_open_folder(&a, dir, &e) || !tensors_open_folder(&b, out, &e)) exit(err_report(&e));
    EXPECT_INT(b.count, m.n_base - m.c.tied);
    for (int64_t i = 0; i < b.count; i++) {
        const Tensor *t = &b.tensors[i], *s = tensors_find(&a, t->name);
        if (!s || s->type != t->type || s->bytes != t->bytes || memcmp(s->data, t->data, t->bytes))
            FAIL("%s: %s was %s", dir, t->name, s ? "another" : "not there");
        if (shard_bytes && i && (int64_t)t->bytes < shard_bytes) {
            int64_t together = 0;
            for (int64_t k = 0; k < b.count; k++)
                if (b.tensors[k].shard == t->shard) together += (int64_t)b.tensors[k].bytes;
            EXPECT(together <= shard_bytes);
        }
    }
    if (shard_bytes) EXPECT(b.n_shards > 2 && strstr(tensors_path(&b, &b.tensors[0]), "-of-000"));
    Config c;
    EXPECT(config_load(&c, out, &e));
    Text one = {0}, two = {0};
    config_print(&m.c, &one), config_print(&c, &two);
    EXPECT_STR(two.p, one.p);
    text_free(&one), text_free(&two);
    tensors_close(&a), tensors_close(&b), model_free(&m);
}

TEST(a_checkpoint_is_written_as_it_was_read) {
    rewrite(THIRDS, tmp_path("kept"), 0);
    rewrite(THIRDS, tmp_path("kept-in-shards"), 50000);
    const char *more[] = {"tiny", "gqa7", "real_heads", "deep"}; // F32, BF16, F16 in shards
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        char dir[600], out[60];
        snprintf(dir, sizeof dir, "%s/oracle/models/%s/checkpoint", test_root(), more[i]);
        snprintf(out, sizeof out, "kept-%s", more[i]);
        if (folder_exists(dir)) rewrite(dir, tmp_path(out), i == 3 ? 300000 : 0);
    }
}

TEST(another_type_is_said_in_the_config) {
    static const char *const types[] = {"f32", "bf16"}, *const words[] = {"\"dtype\": \"float32\"",
                                                                          "\"dtype\": \"bfloat16\""};
    Model m;
    open_model(&m, THIRDS);
    for (int k = 0; k < 2; k++) {
        Err e = {0};
        char path[700], *text;
        size_t size;
        TensorFile f;
        const char *out = tmp_path(types[k]);
        if (!model_save(&m, out, (SaveOptions){.type = types[k]}, &e)) exit(err_report(&e));
        snprintf(path, sizeof path, "%s/config.json", out);
        if (!file_read(path, 1 << 20, "E-IO-03", &text, &size, &e)) exit(err_report(&e));
        EXPECT(strstr(text, words[k]) && strstr(text, "\"model_type\": \"qwen2_5_vl_text\""));
        free(text);
        if (!tensors_open_folder(&f, out, &e)) exit(err_report(&e));
        for (int64_t i = 0; i < f.count; i++) EXPECT(f.tensors[i].type == (k ? FT_BF16 : FT_F32));
        tensors_close(&f);
    }
    model_free(&m);
}

TEST(a_folder_with_files_is_not_written_into) {
    Model m;
    open_model(&m, THIRDS);
    Err e = {0};
    char path[700];
    const char *dir = tmp_path("busy");
    mkdir(dir, 0755);
    snprintf(path, sizeof path, "%s/mine.txt", dir);
    EXPECT(file_write_atomic(path, "x", 1, &e));
    EXPECT(!model_save(&m, dir, (SaveOptions){.type = "keep"}, &e));
    EXPECT_STR(e.code, "E-WR-02");
    EXPECT(file_exists(path));
    e = (Err){0};
    EXPECT(!model_save(&m, path, (SaveOptions){.type = "keep"}, &e));
    EXPECT_STR(e.code, "E-WR-02");
    unlink(path);
    e = (Err){0};
    EXPECT(model_save(&m, dir, (SaveOptions){.type = "keep"}, &e)); // empty now
    snprintf(path, sizeof path, "%s/nowhere/out", folder);
    EXPECT(!model_save(&m, path, (SaveOptions){.type = "keep"}, &e));
    EXPECT_STR(e.code, "E-WR-02");
    DIR *d = opendir(folder);
    for (struct dirent *f; d && (f = readdir(d));) EXPECT(!strstr(f->d_name, ".tmp-")); // nothing is left behind
    if (d) closedir(d);
    model_free(&m);
}

// A replaced embedding leaves a tied head what it was: the two part, and a checkpoint says so.
TEST(a_saved_embedding_unties_the_head) {
    const TensorOut tensors[] = {{OLD "q_proj.lora_A.weight", FT_F32, 2, {1, 72}, numbers},
                                 {OLD "q_proj.lora_B.weight", FT_F32, 2, {72, 1}, numbers},
                                 {"base_model.model.model.embed_tokens.weight", FT_F32, 2, {512, 72}, numbers}};
    Model m;
    open_model(&m, THIRDS);
    Err e = {0};
    EXPECT(m.c.tied);
    float *before = values(&m, find(&m, "lm_head.weight"));
    if (!lora_load(&m, put_adapter(CONFIG(",\"modules_to_save\":[\"embed_tokens\"]"), tensors, 3), &e))
        exit(err_report(&e));
    EXPECT(!m.c.tied && find(&m, "model.embed_tokens.weight")->trained && !find(&m, "lm_head.weight")->trained);
    const char *out = tmp_path("untied");
    if (!model_save(&m, out, (SaveOptions){.type = "f32"}, &e)) exit(err_report(&e));
    Model n;
    open_model(&n, out);
    EXPECT(!n.c.tied);
    float *head = values(&n, find(&n, "lm_head.weight")), *embed = values(&n, find(&n, "model.embed_tokens.weight"));
    EXPECT(!memcmp(head, before, sizeof(float) * 512 * 72));
    EXPECT(!memcmp(embed, numbers, sizeof(float) * 512 * 72));
    free(before), free(head), free(embed);
    model_free(&m), model_free(&n);
}

TEST(half_floats_are_rounded_to_nearest_even_and_never_overflow) {
    char dir[600];
    snprintf(dir, sizeof dir, "%s/oracle/models/deep/checkpoint", test_root());
    if (!folder_exists(dir)) SKIP("no folder %.200s", dir);
    Model m;
    open_model(&m, dir);
    Err e = {0};
    if (!init(&m, "decoder")) exit(1);
    fill_b(&m, 0.5f);
    char wide[600], narrow[600];
    snprintf(wide, sizeof wide, "%s", tmp_path("f16-wide")),
        snprintf(narrow, sizeof narrow, "%s", tmp_path("f16-narrow"));
    if (!model_save(&m, wide, (SaveOptions){.type = "f32"}, &e)) exit(err_report(&e));
    if (!model_save(&m, narrow, (SaveOptions){.type = "keep"}, &e)) exit(err_report(&e));
    TensorFile f, h;
    if (!tensors_open_folder(&f, wide, &e) || !tensors_open_folder(&h, narrow, &e)) exit(err_report(&e));
    int64_t inexact = 0, subnormal = 0;
    for (int64_t i = 0; i < f.count; i++) {
        const Tensor *t = &f.tensors[i], *s = tensors_find(&h, t->name);
        EXPECT(s && s->type == FT_F16);
        for (int64_t k = 0; k < t->elements; k++) {
            float x;
            uint16_t bits;
            memcpy(&x, t->data + 4 * k, 4), memcpy(&bits, s->data + 2 * k, 2);
            double got = f16_to_f32(bits), up = f16_to_f32((uint16_t)(bits + 1)),
                   down = (bits & 0x7fff) ? f16_to_f32((uint16_t)(bits - 1)) : -up, err = fabs(x - got);
            bool nearest = err < fabs(x - up) && err < fabs(x - down);
            bool tie = (err == fabs(x - up) || err == fabs(x - down)) && !(bits & 1);
            inexact += err > 0, subnormal += (bits & 0x7c00) == 0 && err > 0;
            if (!nearest && !tie) FAIL("%s[%lld]: %.9g became %.9g", t->name, (long long)k, (double)x, got);
        }
    }
    EXPECT(inexact > 1000 && subnormal > 0);
    tensors_close(&f), tensors_close(&h);
    fill_b(&m, 1e6f);
    EXPECT(!model_save(&m, tmp_path("f16-over"), (SaveOptions){.type = "keep"}, &e));
    EXPECT_STR(e.code, "E-NU-01");
    EXPECT(!folder_exists(tmp_path("f16-over")));
    model_free(&m);
}

// ------------------------------------------------------------------------------------------ what PEFT wrote and merged

static int64_t adapters, merged_files;
static void stored_adapter(const char *models, const char *model, const char *adapter) {
    char base[900], dir[1000], path[1000], name[300];
    snprintf(base, sizeof base, "%s/%.100s/checkpoint", models, model);
    snprintf(dir, sizeof dir, "%s/%.100s/%.100s/adapter", models, model, adapter);
    snprintf(name, sizeof name, "%.80s-%.80s", model, adapter);
    if (!folder_exists(dir)) return;
    Model m;
    open_model(&m, base);
    Err e = {0};
    AdapterInfo a;
    if (!adapter_open(&a, dir, &e) || !lora_load(&m, dir, &e)) exit(err_report(&e));
    adapters++;
    EXPECT_INT(m.n_params - m.n_base, 2 * a.pairs);
    int64_t saved = 0;
    for (int64_t i = 0; i < m.n_base; i++) saved += m.params[i].trained;
    EXPECT_INT(saved, a.modules_saved);
    adapter_close(&a);
    round_trip(&m, base, name);
    char out[600], file[320];
    snprintf(file, sizeof file, "%s-merged", name);
    snprintf(out, sizeof out, "%s", tmp_path(file));
    if (!lora_merge(&m, &e)) exit(err_report(&e));
    TensorFile want, got;
    snprintf(path, sizeof path, "%s/%.100s/%.100s/merged.safetensors", models, model, adapter);
    bool known = file_exists(path);
    if (!tensors_open_folder(&got, out, &e) || (known && !tensors_open(&want, path, &e))) exit(err_report(&e));
    merged_files += known;
    for (int64_t i = 0; i < got.count; i++) {
        const Tensor *t = &got.tensors[i];
        char original[700];
        canonical_name(original, sizeof original, t->name);
        const Param *p = find(&m, original);
        EXPECT(p && p->rows * p->cols == t->elements);
        float *memory = values(&m, p), *reference = alloc_or_die((size_t)t->elements, sizeof *reference, "test");
        EXPECT(!memcmp(memory, t->data, t->bytes)); // both ways of merging are one
        const Tensor *w = known ? tensors_find(&want, original) : NULL;
        if (w) {
            tensor_to_f32(w, 0, w->elements, reference);
            TensorError err = tensor_error(memory, reference, t->elements);
            if (!(err.relative_l2 <= 2e-7) || err.nonfinite) FAIL("%s: %s: %.3g", name, original, err.relative_l2);
        } else if (known) FAIL("%s: PEFT has no %s", name, original);
        free(memory), free(reference);
    }
    if (known) EXPECT_INT(got.count, want.count);
    if (known) tensors_close(&want);
    tensors_close(&got), model_free(&m);
}

TEST(stored_adapters_load_save_and_merge_as_in_peft) {
    char models[600];
    snprintf(models, sizeof models, "%s/oracle/models", test_root());
    DIR *d = opendir(models);
    if (!d) SKIP("no folder %.200s", models);
    for (struct dirent *model; (model = readdir(d));) {
        char path[900];
        snprintf(path, sizeof path, "%s/%.200s", models, model->d_name);
        DIR *inner = model->d_name[0] == '.' ? NULL : opendir(path);
        for (struct dirent *adapter; inner && (adapter = readdir(inner));)
            if (adapter->d_name[0] != '.') stored_adapter(models, model->d_name, adapter->d_name);
        if (inner) closedir(inner);
    }
    closedir(d);
    if (!adapters) SKIP("no adapter in %.200s", models);
    EXPECT(merged_files > 0);
}
