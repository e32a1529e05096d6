// test_adapter.c - adapter folders: what is accepted means what it says, and every lie is refused by name; the rules by
// which PEFT reads names of modules; and regular expressions.
#include "temporary.h"
#include <regex.h>

// ------------------------------------------------------------------------------------------------------------ helpers

static const char *line_of(const Err *e) {
    static char ring[2][4096];
    static int turn;
    return e->code[0] ? err_line(e, "error", ring[turn++ & 1], sizeof ring[0]) : "accepted";
}

static bool well_formed(const char *line) {
    static regex_t form;
    static bool ready;
    if (!ready)
        ready = !regcomp(&form, "^surgr1: error E-[A-Z]{2}-[0-9]{2}: .+: expected .+; found .+; do: .+$",
                         REG_EXTENDED | REG_NOSUB);
    return ready && !regexec(&form, line, 0, NULL, 0) && !strchr(line, '\n');
}

static void put_text(const char *dir, const char *name, const char *text) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    put_file(path, text, strlen(text));
}
static void put_tensors(const char *dir, const char *name, const TensorOut *tensors, int64_t count) {
    char path[1000];
    Err e = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (!tensors_write(path, tensors, count, &e)) FAIL("%s", line_of(&e));
}

static const float floats[6] = {1, -2, 3.5f, 0, 1e30f, -1e-30f};
static const uint16_t halves[6] = {0x3C00, 0xC000, 0, 0x7BFF, 1, 0x8000};

// ------------------------------------------------------------------------------------------------ regular expressions

static int matches(const char *pattern, const char *text) { // -1: refused
    Pattern p;
    Err e = {0};
    if (!pattern_compile(&p, pattern, strlen(pattern), AT(.file = "test"), &e)) return -1;
    bool match = pattern_matches(&p, text, strlen(text));
    pattern_free(&p);
    return match;
}

// What Python 3.11's re.fullmatch says.
TEST(patterns_match_as_in_python) {
    static const struct {
        const char *pattern, *text;
        int match;
    } cases[] = {
        {"q_proj", "q_proj", 1},
        {"q_proj", "xq_proj", 0},
        {"q.proj", "q_proj", 1},
        {"q\\.proj", "q_proj", 0},
        {"", "", 1},
        {"", "a", 0},
        {".*(q_proj|v_proj)$", "model.language_model.layers.0.self_attn.v_proj", 1},
        {".*(q_proj|v_proj)$", "model.language_model.layers.0.self_attn.k_proj", 0},
        {"a|b|", "", 1},
        {"(a|ab)(c|bcd)", "abcd", 1}, // the first branch fits only when it is given up again
        {"a*?b", "aaab", 1},
        {"a+?", "", 0},
        {"a??", "", 1},
        {"(?:ab){2,3}", "abab", 1},
        {"(?:ab){2,3}", "ababab", 1},
        {"(?:ab){2,3}", "abababab", 0},
        {"(?:ab){2}", "ab", 0},
        {"a{,2}b", "aab", 1},
        {"a{2,}b", "aaaaab", 1},
        {"a{2,}b", "ab", 0},
        {"a{0}b", "b", 1},
        {"a{x}", "a{x}", 1}, // no quantifier: a brace
        {"a{}", "a{}", 1},
        {"(a*)*b", "aaaaab", 1},
        {"(a|a)*", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 0}, // 2^48 steps to one who goes back
        {"layers\\.\\d+\\.\\w+", "layers.12.q_proj", 1},
        {"layers\\.\\d+\\.\\w+", "layers.1x.q_proj", 0},
        {"[^.]+\\.[a-c0-9_-]+", "xyz.a_1-c", 1},
        {"[^.]+\\.[a-c0-9_-]+", "xyz.d", 0},
        {"[]a]+", "]a", 1},
        {"[^]a]", "]", 0},
        {"[\\d\\]]+", "1]2", 1},
        {"[\\D]", "1", 0},
        {"^model.*$", "model.x", 1},
        {"x^", "x", 0},
        {"(?!.*visual).*q_proj", "model.language_model.layers.0.self_attn.q_proj", 1},
        {"^(?!.*visual).*(?:proj|qkv).*", "model.visual.blocks.0.attn.proj", 0},
        {"(model|language_model)(?=\\.).*q_proj", "model.layers.0.q_proj", 1},
        {"(model|language_model)(?=x).*q_proj", "model.layers.0.q_proj", 0},
        {"(?!(?=a)a).*", "b", 1},
        {"(?!(?=a)a).*", "a", 0},
        {".*\\bq_proj", "x.q_proj", 1},
        {".*\\bproj", "x.q_proj", 0},
        {".*\\Bproj", "x.q_proj", 1},
        {"(?P<name>a)b", "ab", 1},
        {"\\Aab\\Z", "ab", 1},
        {"(?:(?:a{2}){2}){2}", "aaaaaaaa", 1},
        {"(?:a|b){1,3}?c", "abac", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int got = matches(cases[i].pattern, cases[i].text);
        if (got != cases[i].match)
            FAIL("%s on %s: expected %d, got %d", cases[i].pattern, cases[i].text, cases[i].match, got);
    }
}

TEST(patterns_that_are_not_ours_are_refused) {
    static const char *const bad[] = {
        "(",      ")",      "a)",       "(a",    "[a",      "[",        "*a",
        "a**",    "a*+",    "a{2}{3}",  "\\",    "(a)\\1",  "(?i)a",    "(?<=a)b",
        "(?<!a)", "(?P=x)", "a{3,2}",   "[b-a]", "[\\d-z]", "\\q",      "^*",
        "(?=a)*", "|*",     "\xC3\xA9", "{2}",   "[a\\",    "a{99999}", "(((((a{99}){99}){99}){99}){99})"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Pattern p;
        Err e = {0};
        EXPECT(!pattern_compile(&p, bad[i], strlen(bad[i]), AT(.file = "test"), &e));
        EXPECT_STR(e.code, "E-AD-03");
        if (!well_formed(line_of(&e))) FAIL("%s", line_of(&e));
    }
    char deep[201];
    memset(deep, '(', 100), memset(deep + 100, ')', 100), deep[200] = 0;
    EXPECT_INT(matches(deep, ""), -1);
    char *large = alloc_or_die((size_t)LIMIT_PATTERN + 2, 1, "test");
    memset(large, 'a', (size_t)LIMIT_PATTERN + 1);
    EXPECT_INT(matches(large, "a"), -1);
    large[LIMIT_PATTERN - 2] = 0;
    EXPECT_INT(matches(large, "a"), 0);
    free(large);
}

// -------------------------------------------------------------------------------------------------------------- names

TEST(paths_of_both_module_trees_are_one) {
    static const char *const cases[][3] = {
        // as written, original, today's tree
        {"model.language_model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj",
         "model.language_model.layers.0.mlp.up_proj"},
        {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"},
        {"layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"},
        {"language_model.model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj",
         "model.language_model.layers.0.mlp.up_proj"},
        {"visual.merger.mlp.0", "visual.merger.mlp.0", "model.visual.merger.mlp.0"},
        {"model.visual.merger.mlp.0", "visual.merger.mlp.0", "model.visual.merger.mlp.0"},
        {"lm_head.weight", "lm_head.weight", "lm_head.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char original[100], tree[100];
        EXPECT_STR(original_path(original, sizeof original, cases[i][0]), cases[i][1]);
        EXPECT_STR(tree_path(tree, sizeof tree, original), cases[i][2]);
    }
}

// ----------------------------------------------------------------------------------------------------------- adapters

#define LAYER "base_model.model.model.layers.0."
static const TensorOut adapter_tensors[] = {
    {LAYER "self_attn.q_proj.lora_A.weight", FT_F32, 2, {2, 3}, floats},
    {LAYER "self_attn.q_proj.lora_B.weight", FT_F32, 2, {1, 2}, floats},
    {"base_model.model.model.visual.blocks.1.mlp.up_proj.lora_A.weight", FT_BF16, 2, {1, 5}, halves},
    {"base_model.model.model.visual.blocks.1.mlp.up_proj.lora_B.weight", FT_F16, 2, {3, 1}, halves},
    {"base_model.model.model.visual.merger.ln_q.weight", FT_F32, 1, {6}, floats},
};
static const char *adapter_verdict(const char *config, const TensorOut *tensors, int64_t count) {
    static char out[4096];
    const char *dir = tmp_folder("adapter");
    put_text(dir, "adapter_config.json", config);
    put_tensors(dir, "adapter_model.safetensors", tensors, count);
    AdapterInfo a;
    Err e = {0};
    if (adapter_open(&a, dir, &e)) {
        adapter_close(&a);
        return "accepted";
    }
    const char *line = line_of(&e);
    if (!well_formed(line)) FAIL("not of the form: %s", line);
    const char *name = strstr(line, "/adapter/");
    snprintf(out, sizeof out, "%.9s%s", line + strlen("surgr1: error "), name ? name + strlen("/adapter/") : line);
    return out;
}
#define GOOD_START                                                                                                     \
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4.5,\"lora_dropout\":0.05,\"rank_pattern\":{\"up_proj\":1},"
#define GOOD_END                                                                                                       \
    "\"modules_to_save\":[\"merger\"],\"bias\":\"none\",\"base_model_name_or_path\":\"Qwen/Qwen2.5-VL-7B-Instruct\"}"
static const char good_config[] = GOOD_START "\"target_modules\":[\"q_proj\",\"mlp.up_proj\"]," GOOD_END;

TEST(an_adapter_is_described) {
    EXPECT_STR(adapter_verdict(good_config, adapter_tensors, 5), "accepted");
    AdapterInfo a;
    Err e = {0};
    EXPECT(adapter_open(&a, tmp_path("adapter"), &e));
    if (e.code[0]) return;
    EXPECT(a.r == 2 && a.alpha == 4.5 && a.dropout == 0.05 && !a.rslora);
    EXPECT_STR(a.base_model, "Qwen/Qwen2.5-VL-7B-Instruct");
    EXPECT_STR(a.targets.p, "[\"q_proj\",\"mlp.up_proj\"]");
    EXPECT(a.pairs == 2 && a.modules_saved == 1 && a.parameters == 6 + 2 + 5 + 3 + 6);
    adapter_close(&a);
}

TEST(adapter_configurations_beyond_plain_lora_are_refused_by_name) {
#define CONFIG(more)                                                                                                   \
    "{\"peft_type\":\"LORA\",\"r\":2,\"rank_pattern\":{\"up_proj\":1},\"modules_to_save\":[\"merger\"]," more "}"
#define EXTENSION(name, value, found)                                                                                  \
    {                                                                                                                  \
        CONFIG("\"" name "\":" value), "E-AD-03: adapter_config.json:1:PLACE: field \"" name                           \
                                       "\": expected this extension of LoRA to be off; found " found                   \
                                       "; do: train or convert the adapter as a plain LoRA"                            \
    }
    static const struct {
        const char *config, *line;
    } cases[] = {
        {"{\"r\":2}", "E-AD-01: adapter_config.json:1:1: field \"peft_type\": expected \"LORA\"; found none; do: use a "
                      "LoRA adapter"},
        {"{\"peft_type\":\"IA3\"}", "E-AD-01: adapter_config.json:1:14: field \"peft_type\": expected \"LORA\"; found "
                                    "\"IA3\"; do: use a LoRA adapter"},
        {"[]", "E-AD-01: adapter_config.json:1:1: field \"peft_type\": expected \"LORA\"; found none; do: use a LoRA "
               "adapter"},
        EXTENSION("use_dora", "true", "true"),
        EXTENSION("lora_bias", "true", "true"),
        EXTENSION("fan_in_fan_out", "true", "true"),
        EXTENSION("layer_replication", "[[0,1]]", "an array"),
        EXTENSION("target_parameters", "[\"x\"]", "an array"),
        EXTENSION("use_qalora", "1", "1"),
        {CONFIG("\"bias\":\"all\""), "E-AD-03: adapter_config.json:1:PLACE: field \"bias\": expected \"none\"; found "
                                     "\"all\"; do: train or convert the adapter as a plain LoRA"},
        {CONFIG("\"init_lora_weights\":\"pissa_niter_4\""),
         "E-AD-03: adapter_config.json:1:PLACE: field \"init_lora_weights\": expected a start that leaves the base "
         "weights alone; found \"pissa_niter_4\"; do: train or convert the adapter as a plain LoRA"},
        {CONFIG("\"target_modules\":[1]"),
         "E-AD-03: adapter_config.json:1:PLACE: field \"target_modules\": expected a list of module names or one "
         "pattern; found an array; do: train or convert the adapter as a plain LoRA"},
        {"{\"peft_type\":\"LORA\",\"modules_to_save\":\"merger\"}",
         "E-AD-03: adapter_config.json:1:PLACE: field \"modules_to_save\": expected a list of module names; found "
         "\"merger\"; do: train or convert the adapter as a plain LoRA"},
        {CONFIG("\"alpha_pattern\":[2]"),
         "E-AD-03: adapter_config.json:1:PLACE: field \"alpha_pattern\": expected an object that maps modules to "
         "numbers; found an array; do: train or convert the adapter as a plain LoRA"},
        {CONFIG("\"alpha_pattern\":{\"q_proj\":0}"),
         "E-AD-02: adapter_config.json:1:PLACE: field \"alpha_pattern\": expected a number above 0 and at most 65536; "
         "found 0; do: use the adapter_config.json that came with the weights"},
        {"{\"peft_type\":\"LORA\",\"rank_pattern\":{\"q_proj\":1025}}",
         "E-AD-02: adapter_config.json:1:PLACE: field \"rank_pattern\": expected a whole number above 0 and at most "
         "1024; found 1025; do: use the adapter_config.json that came with the weights"},
        {"{\"peft_type\":\"LORA\",\"r\":0}", "E-AD-02: adapter_config.json:1:PLACE: field \"r\": expected an integer "
                                             "1..1024; found 0; do: use a value in this range"},
        {"{\"peft_type\":\"LORA\",\"r\":1025}", "E-AD-02: adapter_config.json:1:PLACE: field \"r\": expected an "
                                                "integer 1..1024; found 1025; do: use a value in this range"},
    };
#undef EXTENSION
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *line = adapter_verdict(cases[i].config, adapter_tensors, 5);
        char want[1000]; // PLACE stands for the column of the value, which the config ends in
        const char *place = strstr(cases[i].line, "PLACE");
        int column = atoi(strstr(line, ".json:1:") ? strstr(line, ".json:1:") + 8 : "0");
        EXPECT(column > 0 && column <= (int)strlen(cases[i].config));
        if (place)
            snprintf(want, sizeof want, "%.*s%d%s", (int)(place - cases[i].line), cases[i].line, column, place + 5);
        else snprintf(want, sizeof want, "%s", cases[i].line);
        if (strcmp(line, want)) FAIL("%s:\n  expected %s\n  got      %s", cases[i].config, want, line);
    }
    static const char *const out_of_range[] = {
        "\"lora_alpha\":0",      "\"lora_alpha\":-1",     "\"lora_alpha\":65537", "\"lora_alpha\":\"16\"",
        "\"lora_dropout\":0.91", "\"lora_dropout\":-0.1", "\"use_rslora\":1",     "\"r\":\"8\""};
    for (size_t i = 0; i < sizeof out_of_range / sizeof *out_of_range; i++) {
        char config[200];
        snprintf(config, sizeof config, "{\"peft_type\":\"LORA\",%s}", out_of_range[i]);
        const char *line = adapter_verdict(config, adapter_tensors, 5);
        if (strncmp(line, "E-AD-02: ", 9)) FAIL("%s: %s", config, line);
    }
    static const char *const fine[] = {
        CONFIG("\"use_dora\":false,\"layer_replication\":null,\"target_parameters\":[],\"megatron_config\":{}"),
        CONFIG("\"init_lora_weights\":\"gaussian\",\"use_rslora\":true,\"lora_alpha\":65536"),
        CONFIG("\"init_lora_weights\":true,\"target_modules\":\".*(q_proj|up_proj)$\",\"unknown\":{\"a\":[1]}"),
        CONFIG("\"alpha_pattern\":{\"q_proj\":3.5},\"target_modules\":null"),
    };
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++)
        EXPECT_STR(adapter_verdict(fine[i], adapter_tensors, 5), "accepted");
#undef CONFIG
}

// One tensor of the good adapter replaced (or left out, without a name).
static const char *with_tensor(int index, TensorOut t) {
    TensorOut all[5];
    memcpy(all, adapter_tensors, sizeof all);
    all[index] = t;
    int64_t n = 5;
    if (!t.name) memmove(all + index, all + index + 1, sizeof *all * (size_t)(4 - index)), n = 4;
    return adapter_verdict(good_config, all, n);
}

TEST(adapter_tensors_must_fit_each_other_and_the_config) {
    static const float poison[6] = {1, NAN, 2, -INFINITY, 3, 4};
#define AT_A "adapter_model.safetensors: tensor \"" LAYER "self_attn.q_proj.lora_A.weight\": "
    TensorOut a = adapter_tensors[0], b = adapter_tensors[1];
    EXPECT_STR(with_tensor(1, (TensorOut){0}),
               "E-AD-04: " AT_A "expected its other half lora_B.weight; found none; do: copy the adapter again");
    EXPECT_STR(with_tensor(0, (TensorOut){0}), "E-AD-04: adapter_model.safetensors: tensor \"" LAYER
                                               "self_attn.q_proj.lora_B.weight\": expected its other half "
                                               "lora_A.weight; found none; do: copy the adapter again");
    b.shape[1] = 1;
    EXPECT_STR(with_tensor(1, b), "E-AD-04: " AT_A "expected shapes [rank, in] and [out, rank] of lora_A and lora_B; "
                                  "found [2,3] and [1,1]; do: copy the adapter again");
    b = adapter_tensors[1], b.dims = 3, b.shape[2] = 1;
    EXPECT(!strncmp(with_tensor(1, b), "E-AD-04: ", 9));
    b = adapter_tensors[1], b.shape[0] = 0;
    EXPECT(!strncmp(with_tensor(1, b), "E-AD-04: ", 9));
    a.type = FT_I32;
    EXPECT_STR(with_tensor(0, a),
               "E-AD-04: " AT_A "expected dtype F32, BF16 or F16; found I32; do: save the adapter in float32");
    a = adapter_tensors[0], a.data = poison;
    EXPECT_STR(
        with_tensor(0, a),
        "E-NU-01: " AT_A
        "expected finite values; found 2 of 6 that are not; do: use an adapter from an earlier step of its training");
    const char *strange[] = {"base_model.model.lm_head.weight",
                             "model.layers.0.self_attn.q_proj.lora_A.weight",
                             "base_model.model.model.embed_tokens.lora_embedding_A",
                             "base_model.model.x.lora_A.default.weight",
                             "base_model.model.merger",
                             "base_model.model..lora_A.weightx",
                             "x"};
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        TensorOut t = adapter_tensors[4];
        t.name = strange[i];
        const char *line = with_tensor(4, t);
        if (strncmp(line, "E-AD-04: ", 9) || !strstr(line, "found something else")) FAIL("%s: %s", strange[i], line);
    }
    EXPECT(!strncmp(adapter_verdict(good_config, adapter_tensors + 4, 1), "E-AD-04: ", 9)); // no pair at all
    EXPECT_STR(adapter_verdict(GOOD_START "\"target_modules\":[\"mlp.up_proj\",\"_proj\",\"attn.q_proj\"]," GOOD_END,
                               adapter_tensors, 5),
               "E-AD-04: " AT_A
               "expected a module that target_modules names; found \"model.layers.0.self_attn.q_proj\"; do: use the "
               "adapter_config.json that came with the weights");
}

TEST(the_rank_is_that_of_the_first_pattern_that_names_the_module) {
    static const struct {
        const char *ranks; // q_proj of layer 0 has rank 2, up_proj of vision block 1 has rank 1
        bool fits;
    } cases[] = {
        {"\"r\":2,\"rank_pattern\":{\"up_proj\":1}", true},
        {"\"r\":1,\"rank_pattern\":{\"q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"self_attn.q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"self_attn\\\\.q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"^model.layers.0.self_attn.q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"model.layers.0.self_attn.q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"^layers.0.self_attn.q_proj\":2}", false},
        {"\"r\":1,\"rank_pattern\":{\"q_proj\":3,\"self_attn.q_proj\":2}", false}, // the first counts
        {"\"r\":1,\"rank_pattern\":{\"attn.q_proj\":2}", false},                   // no whole part of the path
        {"\"r\":1,\"rank_pattern\":{\".*q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"(k|q)_proj\":3,\"q_proj\":2}", false},
        {"\"r\":1,\"rank_pattern\":{\"(k|v)_proj\":3,\"q_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"layers\\\\.\\\\d+\\\\.self_attn\\\\.[qk]_proj\":2}", true},
        {"\"r\":1,\"rank_pattern\":{\"^model.language_model.layers.0.self_attn.q_proj\":2}", true}, // today's tree
        {"\"r\":1,\"rank_pattern\":{\".*q_proj\":3}", false},
        {"\"r\":2,\"rank_pattern\":{}", false},
        {"\"r\":2", false},
        {"\"rank_pattern\":{\"up_proj\":1,\"q_proj\":2}", true}, // r is 8 when absent
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char config[300];
        snprintf(config, sizeof config, "{\"peft_type\":\"LORA\",%s}", cases[i].ranks);
        const char *line = adapter_verdict(config, adapter_tensors, 4);
        if (cases[i].fits != !strcmp(line, "accepted")) FAIL("%s: %s", cases[i].ranks, line);
        if (!cases[i].fits && !strstr(line, "expected the rank of adapter_config.json"))
            FAIL("%s: %s", cases[i].ranks, line);
    }
}

TEST(alpha_is_that_of_the_first_pattern_that_names_the_module) {
    EXPECT_STR(adapter_verdict("{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":7,\"rank_pattern\":{\"up_proj\":1},"
                               "\"alpha_pattern\":{\"k_proj\":1,\"(q|k)_proj\":3.5,\"q_proj\":5}}",
                               adapter_tensors, 4),
               "accepted");
    AdapterInfo a;
    Err e = {0};
    EXPECT(adapter_open(&a, tmp_path("adapter"), &e));
    if (e.code[0]) return;
    EXPECT_NEAR(adapter_number(&a.alphas, "model.layers.0.self_attn.q_proj", a.alpha), 3.5, 0);
    EXPECT_NEAR(adapter_number(&a.alphas, "model.layers.0.self_attn.k_proj", a.alpha), 1, 0);
    EXPECT_NEAR(adapter_number(&a.alphas, "model.layers.0.self_attn.o_proj", a.alpha), 7, 0);
    EXPECT_NEAR(adapter_number(&a.alphas, "q_proj", a.alpha), 3.5, 0);
    EXPECT_NEAR(adapter_number(&a.alphas, "aq_proj", a.alpha), 7, 0);
    adapter_close(&a);
}

TEST(target_modules_as_a_pattern_must_name_every_pair) {
#define TARGETS(pattern)                                                                                               \
    "{\"peft_type\":\"LORA\",\"r\":2,\"rank_pattern\":{\"up_proj\":1},\"target_modules\":\"" pattern "\"}"
    static const char *const fit[] = {TARGETS(".*(q_proj|up_proj)$"), TARGETS("model\\\\.(layers|visual).*"),
                                      TARGETS("model\\\\.(language_model|visual)\\\\..*"), TARGETS("all-linear"),
                                      TARGETS("(?<=x).*")}; // what we cannot read is left to the tensors
    for (size_t i = 0; i < sizeof fit / sizeof *fit; i++)
        EXPECT_STR(adapter_verdict(fit[i], adapter_tensors, 4), "accepted");
    static const char *const unfit[] = {TARGETS(".*q_proj"), TARGETS("q_proj|up_proj"), TARGETS("(?!.*visual).*")};
    for (size_t i = 0; i < sizeof unfit / sizeof *unfit; i++) {
        const char *line = adapter_verdict(unfit[i], adapter_tensors, 4);
        if (strncmp(line, "E-AD-04: ", 9) || !strstr(line, "expected a module that target_modules names"))
            FAIL("%s: %s", unfit[i], line);
    }
#undef TARGETS
    const char *line =
        adapter_verdict("{\"peft_type\":\"LORA\",\"r\":2,\"rank_pattern\":{\"(?i)up_proj\":1}}", adapter_tensors, 4);
    if (strncmp(line, "E-AD-03: ", 9) || !strstr(line, "field \"rank_pattern\"")) FAIL("%s", line);
}

TEST(no_mutant_of_an_adapter_configuration_crashes) {
    char config[sizeof good_config];
    const char *dir = tmp_folder("adapter");
    EXPECT_STR(adapter_verdict(good_config, adapter_tensors, 5), "accepted");
    char path[700];
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    size_t n = sizeof good_config - 1;
    memcpy(config, good_config, sizeof config);
    for (size_t bit = 0; bit < 8 * n + n; bit++) { // every bit flipped, then every truncation
        bool flip = bit < 8 * n;
        if (flip) config[bit / 8] ^= (char)(1 << bit % 8);
        put_file(path, config, flip ? n : bit - 8 * n);
        AdapterInfo a;
        Err e = {0};
        if (adapter_open(&a, dir, &e)) {
            EXPECT(flip && a.pairs == 2 && a.modules_saved == 1 && a.parameters == 22);
            adapter_close(&a);
        } else {
            const char *line = line_of(&e);
            if (!well_formed(line) || (strncmp(e.code, "E-JS-0", 6) && strncmp(e.code, "E-AD-0", 6))) FAIL("%s", line);
        }
        if (flip) config[bit / 8] ^= (char)(1 << bit % 8);
    }
}

static int64_t adapters_seen;
static int visit_adapter(const char *path, const struct stat *s, int type, struct FTW *w) {
    (void)s;
    char dir[1100];
    if (type != FTW_F || strcmp(path + w->base, "adapter_config.json")) return 0;
    snprintf(dir, sizeof dir, "%.*s", w->base - 1, path);
    AdapterInfo a;
    Err e = {0};
    adapters_seen++;
    if (!adapter_open(&a, dir, &e)) {
        FAIL("%s", line_of(&e));
        return 0;
    }
    int64_t halves_of_pairs = 0, parameters = 0;
    for (int64_t i = 0; i < a.tensors.count; i++)
        halves_of_pairs += strstr(a.tensors.tensors[i].name, ".lora_") != NULL,
            parameters += a.tensors.tensors[i].elements;
    EXPECT_INT(2 * a.pairs, halves_of_pairs);
    EXPECT_INT(a.modules_saved, a.tensors.count - halves_of_pairs);
    EXPECT_INT(a.parameters, parameters);
    EXPECT(a.r >= 1 && a.alpha > 0 && a.targets.len > 2);
    adapter_close(&a);
    return 0;
}
TEST(adapters_that_peft_wrote_open) {
    char root[600];
    snprintf(root, sizeof root, "%s/oracle", test_root());
    if (!folder_exists(root)) SKIP("no folder %.200s", root);
    adapters_seen = 0;
    nftw(root, visit_adapter, 16, FTW_PHYS);
    EXPECT(adapters_seen > 0);
}
