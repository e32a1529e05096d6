// tiny.h - a small random checkpoint in a temporary folder, for tests that need a model and nothing else.
#ifndef SURGR1_TINY_H
#define SURGR1_TINY_H
#include "test.h"
#include <sys/stat.h>

static const char *FLAT = "{\"model_type\":\"qwen2_5_vl\",\"vocab_size\":50,\"hidden_size\":24,\"intermediate_size\":"
                          "20,\"num_hidden_layers\":2,"
                          "\"num_attention_heads\":3,\"num_key_value_heads\":1,\"max_position_embeddings\":200,\"rms_"
                          "norm_eps\":1e-6,\"rope_theta\":10000.0,"
                          "\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[1,1,2]},\"hidden_act\":\"silu\","
                          "\"tie_word_embeddings\":false,"
                          "\"image_token_id\":40,\"video_token_id\":41,\"vision_start_token_id\":42,\"vision_end_token_"
                          "id\":43,\"eos_token_id\":44,"
                          "\"vision_config\":{\"depth\":2,\"hidden_size\":16,\"intermediate_size\":12,\"num_heads\":2,"
                          "\"patch_size\":4,\"window_size\":16,"
                          "\"out_hidden_size\":24,\"fullatt_block_indexes\":[1]}}";
static const char *PREPROCESSOR =
    "{\"min_pixels\":64,\"max_pixels\":4096,\"patch_size\":4,\"merge_size\":2,\"temporal_patch_size\":2}";

static char folder[200];
static const char *in_folder(const char *name) {
    static char path[2][400];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}
static void write_text(const char *name, const char *text) {
    Err e = {0};
    if (!file_write_atomic(in_folder(name), text, strlen(text), &e)) err_report(&e), exit(99);
}

static void remove_folder(void) {
    const char *names[] = {"config.json", "preprocessor_config.json", "generation_config.json", "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_folder(names[i]));
    rmdir(folder);
}

static bool tiny_rounded; // weights that bf16 holds exactly, so that devices of both types run the same model

// Writes config and random weights, in the original or the renamed layout. Returns a checkpoint folder.
static const char *checkpoint(const char *config, bool renamed) {
    if (!*folder) {
        snprintf(folder, sizeof folder, "/tmp/surgr1_test_XXXXXX");
        if (!mkdtemp(folder)) exit(99);
        atexit(remove_folder);
    }
    Err e = {0};
    Model m;
    write_text("config.json", config), write_text("preprocessor_config.json", PREPROCESSOR);
    unlink(in_folder("generation_config.json"));
    if (!model_describe(&m, folder, &e)) err_report(&e), exit(99);
    TensorOut *out = alloc_or_die((size_t)m.n_params, sizeof *out, "test");
    char(*names)[192] = alloc_or_die((size_t)m.n_params, sizeof *names, "test");
    int64_t n = 0;
    for (int64_t i = 0; i < m.n_params; i++) {
        Param *p = &m.params[i];
        if (p->tied) continue;
        bool visual = !strncmp(p->name, "visual.", 7), text = !strncmp(p->name, "model.", 6);
        snprintf(names[n], sizeof names[n], "%s%s",
                 renamed && visual ? "model."
                 : renamed && text ? "model.language_model."
                                   : "",
                 renamed && text ? p->name + 6 : p->name);
        float *data = alloc_or_die((size_t)(p->rows * p->cols), sizeof *data, "test");
        for (int64_t k = 0; k < p->rows * p->cols; k++) {
            double u = 2 * random_uniform(5, RANDOM_TEST, (uint64_t)i, (uint32_t)k) - 1;
            data[k] = (float)(p->rows == 1                 ? 1 + 0.2 * u
                              : i == 0 || p->rows == m.c.V ? u
                                                           : 2 * u / sqrt((double)p->cols));
            if (tiny_rounded) data[k] = bf16_to_f32(f32_to_bf16(data[k]));
        }
        out[n] = (TensorOut){.name = names[n], .type = FT_F32, .dims = p->dims, .data = data};
        memcpy(out[n].shape, p->shape, sizeof p->shape);
        n++;
    }
    if (!tensors_write(in_folder("model.safetensors"), out, n, &e)) err_report(&e), exit(99);
    for (int64_t i = 0; i < n; i++) free((void *)(uintptr_t)out[i].data);
    free(out), free(names);
    model_free(&m);
    return folder;
}

#endif
