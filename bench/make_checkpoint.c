// make_checkpoint.c - writes a checkpoint folder with random weights in the shapes of a real model, to measure with.
//
// What it is:  config.json (flat layout), preprocessor_config.json, generation_config.json, and bf16 safetensors shards with
//              their index; true tensor names and shapes. Weights are uniform with a standard deviation of 0.02, norms
//              are 1. Nothing is held in memory but one buffer.
// What it is not: a model that says anything, or part of any test.
//              build/bench/make_checkpoint tiny|demo|3b|7b DIR [--tokenizer DIR]    copies the tokenizer's files from there
// Read before: model.c's parameter table, whose names these are.
#include "../surgr1.h"
#include <errno.h>
#include <sys/stat.h>

typedef struct Preset {
    const char *name;
    int64_t V, C, F, L, heads, kv_heads, depth, vC, vF, v_heads;
    bool tied;
    const char *sections, *full;
    int64_t special; // the first of the 14 ids that config.json names, <|endoftext|> (151643) to <|video_pad|> (151656)
} Preset;
static const Preset presets[] = {
    {"tiny", 152064, 64, 176, 2, 4, 2, 4, 64, 172, 4, true, "2,3,3", "3", 151643},
    {"demo", 2048, 192, 512, 6, 6, 2, 4, 128, 344, 4, true, "4,6,6", "3", 2034}, // 4.05 M parameters
    {"3b", 151936, 2048, 11008, 36, 16, 2, 32, 1280, 3420, 16, true, "16,24,24", "7,15,23,31", 151643},
    {"7b", 152064, 3584, 18944, 28, 28, 4, 32, 1280, 3420, 16, false, "16,24,24", "7,15,23,31", 151643},
};

typedef struct Entry {
    char name[128];
    int dims;
    int64_t shape[5];
    int shard;
} Entry;
static Entry entries[1024];
static int n_entries;
static const int64_t SHARD_BYTES = INT64_C(4000000000);

static int64_t entry_bytes(const Entry *e) {
    int64_t n = 2;
    for (int i = 0; i < e->dims; i++) n *= e->shape[i];
    return n;
}
static void entry(const char *prefix, int64_t index, const char *name, int64_t rows, int64_t cols) {
    Entry *e = &entries[n_entries++];
    if (index >= 0) snprintf(e->name, sizeof e->name, "%s%lld.%s", prefix, (long long)index, name);
    else snprintf(e->name, sizeof e->name, "%s%s", prefix, name);
    e->dims = rows ? 2 : 1;
    e->shape[0] = rows ? rows : cols, e->shape[1] = cols;
}
static void linear(const char *prefix, int64_t index, const char *name, int64_t out, int64_t in, bool bias) {
    char full[100];
    snprintf(full, sizeof full, "%s.weight", name);
    entry(prefix, index, full, out, in);
    snprintf(full, sizeof full, "%s.bias", name);
    if (bias) entry(prefix, index, full, 0, out);
}

static void list_tensors(const Preset *p) {
    int64_t dim = p->C / p->heads, KV = p->kv_heads * dim, unit = 4 * p->vC;
    linear("model.", -1, "embed_tokens", p->V, p->C, false);
    for (int64_t i = 0; i < p->L; i++) {
        const char *at = "model.layers.";
        entry(at, i, "input_layernorm.weight", 0, p->C);
        linear(at, i, "self_attn.q_proj", p->C, p->C, true);
        linear(at, i, "self_attn.k_proj", KV, p->C, true);
        linear(at, i, "self_attn.v_proj", KV, p->C, true);
        linear(at, i, "self_attn.o_proj", p->C, p->C, false);
        entry(at, i, "post_attention_layernorm.weight", 0, p->C);
        linear(at, i, "mlp.gate_proj", p->F, p->C, false);
        linear(at, i, "mlp.up_proj", p->F, p->C, false);
        linear(at, i, "mlp.down_proj", p->C, p->F, false);
    }
    entry("model.", -1, "norm.weight", 0, p->C);
    if (!p->tied) linear("", -1, "lm_head", p->V, p->C, false);
    entries[n_entries] = (Entry){"visual.patch_embed.proj.weight", 5, {p->vC, 3, 2, 14, 14}, 0};
    n_entries++;
    for (int64_t i = 0; i < p->depth; i++) {
        const char *at = "visual.blocks.";
        entry(at, i, "norm1.weight", 0, p->vC);
        entry(at, i, "norm2.weight", 0, p->vC);
        linear(at, i, "attn.qkv", 3 * p->vC, p->vC, true);
        linear(at, i, "attn.proj", p->vC, p->vC, true);
        linear(at, i, "mlp.gate_proj", p->vF, p->vC, true);
        linear(at, i, "mlp.up_proj", p->vF, p->vC, true);
        linear(at, i, "mlp.down_proj", p->vC, p->vF, true);
    }
    entry("visual.merger.", -1, "ln_q.weight", 0, p->vC);
    linear("visual.merger.", -1, "mlp.0", unit, unit, true);
    linear("visual.merger.", -1, "mlp.2", p->C, unit, true);
}

static void fail(const char *path) {
    fprintf(stderr, "make_checkpoint: %s: %s\n", path, strerror(errno));
    exit(EXIT_WRITE);
}
static FILE *create(char *path, size_t size, const char *dir, const char *name) {
    snprintf(path, size, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f) fail(path);
    return f;
}
static void finish(FILE *f, const char *path) {
    if (ferror(f) || fclose(f)) fail(path);
}
static int by_name(const void *a, const void *b) { return strcmp(((const Entry *)a)->name, ((const Entry *)b)->name); }

static void write_shard(const char *dir, const char *name, int shard) {
    static uint16_t table[1 << 16], out[1 << 20];
    static uint64_t state = 88172645463325252u; // xorshift64 (Marsaglia 2003)
    char path[1200];
    Text header = {0};
    int64_t at = 0;
    for (int i = 0; i < 1 << 16; i++) table[i] = f32_to_bf16(((float)i - 32767.5f) / 32768.0f * 0.0346f);
    text_addf(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n_entries; i++) {
        const Entry *e = &entries[i];
        if (e->shard != shard) continue;
        text_addf(&header, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[", e->name);
        for (int k = 0; k < e->dims; k++) text_addf(&header, "%s%lld", k ? "," : "", (long long)e->shape[k]);
        text_addf(&header, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + entry_bytes(e)));
        at += entry_bytes(e);
    }
    text_addf(&header, "}");
    while (header.len % 8) text_addf(&header, " ");
    FILE *f = create(path, sizeof path, dir, name);
    uint64_t length = header.len;
    fwrite(&length, 1, 8, f), fwrite(header.p, 1, header.len, f);
    for (int i = 0; i < n_entries; i++) {
        const Entry *e = &entries[i];
        if (e->shard != shard) continue;
        bool norm = strstr(e->name, "norm") || strstr(e->name, "ln_q");
        for (int64_t left = entry_bytes(e) / 2, n; left > 0; left -= n) {
            n = left < 1 << 20 ? left : 1 << 20;
            for (int64_t k = 0; k < n; k += 4) {
                state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                for (int64_t c = 0; c < 4; c++) out[k + c] = norm ? 0x3F80 : table[state >> 16 * c & 0xFFFF];
            }
            if (fwrite(out, 2, (size_t)n, f) != (size_t)n) fail(path);
        }
    }
    finish(f, path);
    text_free(&header);
}

static void write_configs(const Preset *p, const char *dir) {
    char path[1200];
    FILE *f = create(path, sizeof path, dir, "config.json");
    fprintf(f,
            "{\n  \"architectures\": [\"Qwen2_5_VLForConditionalGeneration\"],\n  \"model_type\": \"qwen2_5_vl\",\n"
            "  \"hidden_size\": %lld,\n  \"intermediate_size\": %lld,\n  \"num_hidden_layers\": %lld,\n"
            "  \"num_attention_heads\": %lld,\n  \"num_key_value_heads\": %lld,\n  \"vocab_size\": %lld,\n"
            "  \"tie_word_embeddings\": %s,\n  \"max_position_embeddings\": 128000,\n  \"rope_theta\": 1000000.0,\n"
            "  \"rope_scaling\": {\"type\": \"mrope\", \"mrope_section\": [%s]},\n  \"rms_norm_eps\": 1e-06,\n"
            "  \"hidden_act\": \"silu\",\n  \"use_sliding_window\": false,\n  \"torch_dtype\": \"bfloat16\",\n"
            "  \"bos_token_id\": %lld,\n  \"eos_token_id\": %lld,\n  \"vision_start_token_id\": %lld,\n"
            "  \"vision_end_token_id\": %lld,\n  \"vision_token_id\": %lld,\n  \"image_token_id\": %lld,\n"
            "  \"video_token_id\": %lld,\n",
            (long long)p->C, (long long)p->F, (long long)p->L, (long long)p->heads, (long long)p->kv_heads,
            (long long)p->V, p->tied ? "true" : "false", p->sections, (long long)p->special, (long long)p->special + 2,
            (long long)p->special + 9, (long long)p->special + 10, (long long)p->special + 11,
            (long long)p->special + 12, (long long)p->special + 13);
    fprintf(f,
            "  \"vision_config\": {\"depth\": %lld, \"hidden_size\": %lld, \"intermediate_size\": %lld, \"num_heads\": "
            "%lld,\n"
            "    \"hidden_act\": \"silu\", \"in_chans\": 3, \"patch_size\": 14, \"temporal_patch_size\": 2,\n"
            "    \"spatial_merge_size\": 2, \"window_size\": 112, \"fullatt_block_indexes\": [%s], "
            "\"tokens_per_second\": 2,\n"
            "    \"out_hidden_size\": %lld}\n}\n",
            (long long)p->depth, (long long)p->vC, (long long)p->vF, (long long)p->v_heads, p->full, (long long)p->C);
    finish(f, path);
    f = create(path, sizeof path, dir, "generation_config.json");
    fprintf(f,
            "{\"bos_token_id\": %lld, \"pad_token_id\": %lld, \"do_sample\": true, \"eos_token_id\": [%lld, %lld],\n"
            " \"repetition_penalty\": 1.05, \"temperature\": 0.000001}\n",
            (long long)p->special, (long long)p->special, (long long)p->special + 2, (long long)p->special);
    finish(f, path);
    f = create(path, sizeof path, dir, "preprocessor_config.json");
    fprintf(
        f,
        "{\"min_pixels\": 3136, \"max_pixels\": 12845056, \"patch_size\": 14, \"temporal_patch_size\": 2, "
        "\"merge_size\": 2,\n"
        " \"image_mean\": [0.48145466, 0.4578275, 0.40821073], \"image_std\": [0.26862954, 0.26130258, 0.27577711],\n"
        " \"image_processor_type\": \"Qwen2VLImageProcessor\", \"processor_class\": \"Qwen2_5_VLProcessor\"}\n");
    finish(f, path);
}

static void copy_tokenizer(const char *from, const char *dir) {
    static const char *const names[] = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"};
    for (int i = 0; i < 4; i++) {
        char source[1200], path[1200];
        char *data;
        size_t size;
        Err e = {0};
        snprintf(source, sizeof source, "%s/%s", from, names[i]);
        if (!file_exists(source)) continue;
        if (!file_read(source, LIMIT_TOKENIZER_BYTES, "E-TK-01", &data, &size, &e)) exit(err_report(&e));
        FILE *f = create(path, sizeof path, dir, names[i]);
        fwrite(data, 1, size, f);
        finish(f, path);
        free(data);
    }
}

int main(int argc, char **argv) {
    const Preset *p = NULL;
    for (size_t i = 0; argc > 1 && i < sizeof presets / sizeof *presets; i++)
        if (!strcmp(argv[1], presets[i].name)) p = &presets[i];
    bool right = p && (argc == 3 || (argc == 5 && !strcmp(argv[3], "--tokenizer")));
    if (!right) {
        printf("make_checkpoint tiny|demo|3b|7b DIR [--tokenizer DIR]: writes a checkpoint of random bf16 weights\n");
        return argc == 1 ? EXIT_OK : EXIT_USAGE;
    }
    const char *dir = argv[2];
    if (mkdir(dir, 0777) && errno != EEXIST) fail(dir);
    list_tensors(p);
    qsort(entries, (size_t)n_entries, sizeof *entries, by_name);
    int64_t total = 0, filled = 0;
    int shards = 1;
    for (int i = 0; i < n_entries; i++) {
        int64_t bytes = entry_bytes(&entries[i]);
        if (filled && filled + bytes > SHARD_BYTES) shards++, filled = 0;
        entries[i].shard = shards;
        filled += bytes, total += bytes;
    }
    char path[1200], name[64];
    for (int s = 1; s <= shards; s++) {
        if (shards == 1) snprintf(name, sizeof name, "model.safetensors");
        else snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", s, shards);
        write_shard(dir, name, s);
        fprintf(stderr, "%s/%s\n", dir, name);
    }
    if (shards > 1) {
        FILE *f = create(path, sizeof path, dir, "model.safetensors.index.json");
        fprintf(f, "{\n  \"metadata\": {\"total_size\": %lld},\n  \"weight_map\": {\n", (long long)total);
        for (int i = 0; i < n_entries; i++)
            fprintf(f, "    \"%s\": \"model-%05d-of-%05d.safetensors\"%s\n", entries[i].name, entries[i].shard, shards,
                    i + 1 < n_entries ? "," : "");
        fprintf(f, "  }\n}\n");
        finish(f, path);
    }
    write_configs(p, dir);
    if (argc == 5) copy_tokenizer(argv[4], dir);
    fprintf(stderr, "%d tensors, %lld bytes\n", n_entries, (long long)total);
    return EXIT_OK;
}
