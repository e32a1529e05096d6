// info.c - surgr1 info: what a checkpoint, an adapter or a picture is.
//
// What it is:  facts by name, one a line or as one JSON object. Nothing is computed with the weights.
// What it is not: a check (check.c).
// Read before: commands.h.  Read next: check.c.
#include "commands.h"

static struct {
    const char *model, *adapter, *image;
    int64_t min_pixels, max_pixels;
    int exif;
    bool json;
} info;
// clang-format off
static Option info_options[] = {
    TEXT("model", &info.model, "DIR", "checkpoint folder; beside --image it gives the limits"),
    TEXT("adapter", &info.adapter, "DIR", "PEFT LoRA adapter folder"),
    TEXT("image", &info.image, "FILE", "JPEG or PNG"),
    INT("min-pixels", &info.min_pixels, "N", "smallest area after the resize; 0 = the model's, or 3136", 0, 12845056),
    INT("max-pixels", &info.max_pixels, "N", "largest area after the resize; 0 = the model's, or 12845056", 0, 12845056),
    CHOICE("exif", &info.exif, "ignore|apply", "turn the picture by its EXIF orientation"),
    FLAG("json", &info.json, "one JSON object on standard output"),
    END};
// clang-format on

// What is known, one fact a line; with --json the same names as members of one object.
static Text facts;
static void fact_int(const char *name, int64_t value, const char *unit) {
    if (info.json) text_addf(&facts, "%s\"%s\":%lld", facts.len ? "," : "{", name, (long long)value);
    else text_addf(&facts, "%-26s %lld %s\n", name, (long long)value, unit);
}
static void fact_real(const char *name, double value) {
    if (info.json) text_addf(&facts, "%s\"%s\":", facts.len ? "," : "{", name);
    else text_addf(&facts, "%-26s ", name);
    text_add_json_number(&facts, value);
    if (!info.json) text_addf(&facts, "\n");
}
static void fact_text(const char *name, const char *value) {
    if (!info.json) {
        text_addf(&facts, "%-26s ", name);
        text_add_clean(&facts, value, strlen(value), ""); // names come from files
        text_addf(&facts, "\n");
        return;
    }
    text_addf(&facts, "%s\"%s\":", facts.len ? "," : "{", name);
    text_add_json_string(&facts, value, strlen(value));
}

static bool info_image(Err *e) {
    Config c = {0};
    VisionConfig *v = &c.vision;
    int width, height, orientation;
    const char *format;
    int64_t h, w;
    if (info.model && !config_load(&c, info.model, e)) return false;
    if (!info.model) // Qwen2.5-VL as published
        v->patch = 14, v->merge = 2, v->min_pixels = 3136, v->max_pixels = LIMIT_MODEL_PIXELS;
    if (info.min_pixels) v->min_pixels = info.min_pixels;
    if (info.max_pixels) v->max_pixels = info.max_pixels;
    if (!pixel_limits_ok(v, e) || !image_info(info.image, &width, &height, &format, &orientation, e)) return false;
    if (info.exif == 1 && orientation > 4) { // 5 to 8 lie on their side
        int swap = width;
        width = height, height = swap;
    }
    if (!smart_resize(height, width, v->patch * v->merge, v->min_pixels, v->max_pixels, &h, &w, info.image, e))
        return false;
    int64_t rows = h / v->patch, columns = w / v->patch;
    fact_text("image", info.image);
    fact_text("format", format);
    fact_int("width", width, "pixels");
    fact_int("height", height, "pixels");
    fact_int("orientation", orientation, "(EXIF; 1 = as stored)");
    fact_int("resized_width", w, "pixels");
    fact_int("resized_height", h, "pixels");
    fact_int("grid_rows", rows, "patches");
    fact_int("grid_columns", columns, "patches");
    fact_int("tokens", rows * columns / (v->merge * v->merge), "");
    fact_int("min_pixels", v->min_pixels, "");
    fact_int("max_pixels", v->max_pixels, "");
    return true;
}

static bool info_model(Err *e) {
    Model m = {0};
    TensorFile f = {0};
    if (!model_describe(&m, info.model, e)) return false;
    bool ok = tensors_open_folder(&f, info.model, e);
    const Config *c = &m.c;
    int64_t vision = 0, embeddings = 0, decoder = 0, vectors = 0, files = 0, not_bf16 = 0, not_f32 = 0;
    for (int64_t i = 0; i < m.n_params; i++) {
        const Param *p = &m.params[i];
        int64_t n = p->tied ? 0 : p->rows * p->cols;
        if (!strncmp(p->name, "visual.", 7)) vision += n;
        else if (!strcmp(p->name, "model.embed_tokens.weight") || !strcmp(p->name, "lm_head.weight")) embeddings += n;
        else decoder += n;
        if (p->dims == 1) vectors += n;
    }
    for (int64_t i = 0; ok && i < f.count; i++) {
        files += (int64_t)f.tensors[i].bytes;
        not_bf16 += f.tensors[i].type != FT_BF16, not_f32 += f.tensors[i].type != FT_F32;
    }
    if (ok) {
        int64_t all = vision + decoder + embeddings, bf16 = 2 * (all - vectors) + 4 * vectors;
        fact_text("model", info.model);
        fact_text("model_type", "qwen2_5_vl");
        fact_int("parameters", all, "");
        fact_int("parameters_vision", vision, "");
        fact_int("parameters_decoder", decoder, "");
        fact_int("parameters_embeddings", embeddings,
                 c->tied ? "(head and embedding are one)" : "(embedding and head)");
        fact_int("tensors", f.count, "");
        fact_text("stored_type", !not_bf16 ? "BF16" : !not_f32 ? "F32" : "other or mixed");
        fact_int("bytes_files", files, "bytes");
        fact_int("bytes_cpu_auto", not_bf16 ? 4 * all : bf16, not_bf16 ? "bytes" : "bytes (matrices mapped as BF16)");
        fact_int("bytes_cpu_f32", 4 * all, "bytes");
        fact_int("bytes_cuda_bf16", bf16, "bytes");
        fact_int("bytes_cuda_f32", 4 * all, "bytes");
        fact_int("bytes_cache_per_token", 8 * c->L * c->kv_heads * c->dim, "bytes (keys and values in F32)");
        fact_int("layers", c->L, "");
        fact_int("hidden_size", c->C, "");
        fact_int("intermediate_size", c->F, "");
        fact_int("heads", c->heads, "");
        fact_int("kv_heads", c->kv_heads, "");
        fact_int("head_size", c->dim, "");
        fact_int("vocabulary", c->V, "");
        fact_int("context", c->context < LIMIT_CONTEXT ? c->context : LIMIT_CONTEXT, "tokens");
        fact_int("vision_blocks", c->vision.depth, "");
        fact_int("vision_hidden_size", c->vision.C, "");
        fact_int("patch_size", c->vision.patch, "pixels");
        fact_int("min_pixels", c->vision.min_pixels, "");
        fact_int("max_pixels", c->vision.max_pixels, "");
        tensors_close(&f);
    }
    model_free(&m);
    return ok;
}

static bool info_adapter(Err *e) {
    AdapterInfo a;
    if (!adapter_open(&a, info.adapter, e)) return false;
    fact_text("adapter", info.adapter);
    fact_text("base_model", a.base_model);
    fact_int("rank", a.r, "");
    fact_real("alpha", a.alpha);
    fact_real("dropout", a.dropout);
    fact_text("scaling", a.rslora ? "alpha / sqrt(rank)" : "alpha / rank");
    fact_text("targets", a.targets.p ? a.targets.p : "");
    fact_int("pairs", a.pairs, "");
    fact_int("modules_saved", a.modules_saved, "tensors");
    fact_int("parameters", a.parameters, "");
    adapter_close(&a);
    return true;
}

static int run_info(char **args, int n) {
    Err e = {0};
    (void)args, (void)n;
    if (!info.model && !info.adapter && !info.image)
        return usage("--model", "--model, --adapter or --image", "none of them", "say what to look at");
    if (info.adapter && (info.model || info.image))
        return usage("--adapter", "nothing beside it", "another thing to look at", "ask about one at a time");
    bool ok = info.image ? info_image(&e) : info.adapter ? info_adapter(&e) : info_model(&e);
    if (ok) printf("%s%s", facts.p, info.json ? "}\n" : "");
    text_free(&facts);
    return ok ? EXIT_OK : err_report(&e);
}

const Command command_info = {
    "info",
    "info --model DIR | --adapter DIR | --image FILE",
    "Says what a checkpoint, an adapter or a picture is: parameters, bytes on each device, tokens it takes.",
    info_options,
    0,
    0,
    "no argument",
    run_info};
