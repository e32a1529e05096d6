// check.c - surgr1 check KIND FILE: every reader alone.
//
// What it is:  the same functions the program uses, without a model: for users, tests and the triage of fuzzing.
// What it is not: a second opinion. What a reader accepts here it accepts everywhere.
// Read before: commands.h.  Read next: ../surgr1.c.
#include "commands.h"
#include <unistd.h>

// In the order of the table in run_check.
#define CHECK_KINDS "json|jsonl|config|safetensors|index|tokenizer|image|dataset|adapter|checkpoint|log"

static struct {
    bool print;
    const char *raw, *data_root;
} check;
// clang-format off
static Option check_options[] = {
    FLAG("print", &check.print, "what was understood, as canonical JSON on standard output"),
    TEXT("raw", &check.raw, "FILE", "image: write the pixels as RGB bytes"),
    TEXT("data-root", &check.data_root, "DIR", "dataset: the pictures must be there, beneath this folder"),
    END};
// clang-format on

// The problems of one file: the first 20 are printed, the rest counted.
static struct {
    int64_t found;
    int rc;
    Err last;
} problems;

static void problem(void *ctx, const Err *e) {
    (void)ctx;
    int rc = ++problems.found <= LIMIT_LISTED ? err_report(e) : err_exit_code(e);
    if (rc > problems.rc) problems.rc = rc;
    problems.last = *e;
}

static bool check_json(const char *path, Text *out, Err *e) {
    JsonDoc doc;
    if (!json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){0}, e)) return false;
    json_print(out, doc.root);
    text_add(out, "\n", 1);
    json_free(&doc);
    return true;
}

static bool check_line(void *ctx, const char *line, size_t len, int64_t number, Err *unused) {
    Err e = {0};
    JsonDoc doc;
    void **pair = ctx; // the path and the output
    (void)unused;
    if (!json_parse(&doc, line, len, pair[0], (JsonOptions){.refuse_duplicates = true, .first_line = (uint32_t)number},
                    &e)) {
        problem(NULL, &e);
        return true;
    }
    if (doc.root->type != JSON_OBJECT) {
        err_set(&e, "E-DS-01", json_at(&doc, doc.root, NULL),
                "expected a JSON object; found another value; do: write one object a line");
        problem(NULL, &e);
    } else if (check.print) {
        json_print(pair[1], doc.root);
        text_add(pair[1], "\n", 1);
    }
    json_free(&doc);
    return true;
}

static bool check_jsonl(const char *path, Text *out, Err *e) {
    void *pair[2] = {(void *)(uintptr_t)path, out};
    return lines_read(path, check_line, pair, e);
}

static bool check_record(void *ctx, Record *r, Err *e) {
    Text *out = ctx;
    for (int k = 0; check.data_root && k < r->n_images; k++) {
        if (!strncmp(r->images[k], "data:", 5)) continue; // stands in the record itself
        int fd = open_beneath(check.data_root, r->images[k], "E-DS-04", AT(.file = r->doc.file, .sample = r->id), e);
        if (fd < 0) return false;
        close(fd);
    }
    if (!check.print) return true;
    text_addf(out, "{\"id\":");
    text_add_json_string(out, r->id, strlen(r->id));
    text_addf(out, ",\"messages\":[");
    for (int i = 0; i < r->n; i++) {
        const Message *m = &r->messages[i];
        text_addf(out, "%s{\"role\":\"%s\",\"content\":[", i ? "," : "", m->role); // one of three words
        for (int k = 0; k < m->n_parts; k++) {
            const Part *p = &m->parts[k];
            text_addf(out, "%s{\"type\":\"%s\",\"%s\":", k ? "," : "", p->image >= 0 ? "image" : "text",
                      p->image >= 0 ? "image" : "text");
            if (p->image >= 0) text_add_json_string(out, r->images[p->image], strlen(r->images[p->image]));
            else text_add_json_string(out, p->text, p->len);
            text_addf(out, "}");
        }
        text_addf(out, "]%s}", strcmp(m->role, "assistant") || r->trained[i] ? "" : ",\"loss\":false");
    }
    text_addf(out, "]}\n");
    return true;
}

static bool check_dataset(const char *path, Text *out, Err *e) {
    RecordOptions options = {.boxes = true, .data_images = true};
    return records_read_all(path, options, NULL, check_record, problem, out, e);
}

static bool check_config(const char *path, Text *out, Err *e) {
    Config c;
    if (folder_exists(path) ? !config_load(&c, path, e) : !config_read(&c, path, e)) return false;
    config_print(&c, out);
    text_add(out, "\n", 1);
    return true;
}

static void print_tensors(const TensorFile *f, Text *out) {
    text_addf(out, "{\"metadata\":%s,\"tensors\":[", f->metadata.p ? f->metadata.p : "{}");
    for (int64_t i = 0; i < f->count; i++) {
        const Tensor *t = &f->tensors[i];
        text_addf(out, "%s{\"name\":", i ? "," : "");
        text_add_json_string(out, t->name, strlen(t->name));
        text_addf(out, ",\"dtype\":\"%s\",\"shape\":[", file_type_name(t->type));
        for (int k = 0; k < t->dims; k++) text_addf(out, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        text_addf(out, "],\"bytes\":%zu,\"nonfinite\":%lld", t->bytes, (long long)tensor_count_nonfinite(t));
        char hex[65];
        sha256_hex(t->data, t->bytes, hex);
        text_addf(out, ",\"sha256\":\"%s\"}", hex);
    }
    text_addf(out, "]}\n");
}

static bool check_tensors(const char *path, Text *out, Err *e) {
    TensorFile f;
    if (!tensors_open(&f, path, e)) return false;
    if (check.print) print_tensors(&f, out);
    tensors_close(&f);
    return true;
}

static bool check_index(const char *path, Text *out, Err *e) {
    TensorFile f;
    if (folder_exists(path) ? !tensors_open_folder(&f, path, e) : !tensors_open_index(&f, path, e)) return false;
    if (check.print) print_tensors(&f, out);
    tensors_close(&f);
    return true;
}

static bool check_tokenizer(const char *path, Text *out, Err *e) {
    Tokenizer *t;
    if (folder_exists(path) ? !tokenizer_load(&t, path, e) : !tokenizer_load_json(&t, path, e)) return false;
    text_addf(out, "{\"size\":%d,\"added\":[", tokenizer_size(t));
    bool comma = false;
    for (int32_t id = 0; id < tokenizer_size(t); id++) {
        size_t len;
        bool added = false, special = false;
        const char *text = tokenizer_token(t, id, &len, &added, &special);
        if (!text || !added) continue;
        text_addf(out, "%s{\"id\":%d,\"text\":", comma ? "," : "", id);
        text_add_json_string(out, text, len);
        text_addf(out, ",\"special\":%s}", special ? "true" : "false");
        comma = true;
    }
    text_addf(out, "]}\n");
    tokenizer_free(t);
    return true;
}

static bool check_image(const char *path, Text *out, Err *e) {
    Image im;
    char hex[65];
    if (!image_read(&im, path, (ImageOptions){0}, e)) return false;
    size_t bytes = (size_t)im.width * (size_t)im.height * 3;
    sha256_hex(im.rgb, bytes, hex);
    text_addf(out, "{\"width\":%d,\"height\":%d,\"channels\":3,\"orientation\":%d,\"sha256\":\"%s\"}\n", im.width,
              im.height, im.orientation, hex);
    bool ok = !check.raw || file_write_atomic(check.raw, im.rgb, bytes, e);
    image_free(&im);
    return ok;
}

static bool check_adapter(const char *path, Text *out, Err *e) {
    AdapterInfo a;
    if (!adapter_open(&a, path, e)) return false;
    text_addf(out, "{\"r\":%lld,\"lora_alpha\":", (long long)a.r);
    text_add_json_number(out, a.alpha);
    text_addf(out, ",\"target_modules\":%s,\"pairs\":%lld,\"modules_saved\":%lld,\"parameters\":%lld}\n",
              a.targets.p ? a.targets.p : "null", (long long)a.pairs, (long long)a.modules_saved,
              (long long)a.parameters);
    adapter_close(&a);
    return true;
}

// One checkpoint, or all of a run folder.
static bool check_checkpoint(const char *path, Text *out, Err *e) {
    char manifest[1100];
    int64_t count = 1;
    if (!folder_exists(path))
        return err_set(e, "E-IO-01", AT(.file = path), "expected a folder; found none; do: check the path");
    if (!path_join(manifest, sizeof manifest, path, "ckpt", e)) return false;
    if (folder_exists(manifest)) {
        if (!run_verify(path, &count, e)) return false;
    } else if (!checkpoint_verify(path, e)) return false;
    text_addf(out, "{\"checkpoints\":%lld}\n", (long long)count);
    return true;
}

static bool check_log(const char *path, Text *out, Err *e) {
    int64_t lines;
    bool torn;
    if (!log_check(path, &lines, &torn, e)) return false;
    text_addf(out, "{\"lines\":%lld,\"torn\":%s}\n", (long long)lines, torn ? "true" : "false");
    return true;
}

static int run_check(char **args, int n) {
    static const struct {
        const char *name;
        bool (*check)(const char *path, Text *out, Err *e);
    } kinds[] = {{"json", check_json},       {"jsonl", check_jsonl},
                 {"config", check_config},   {"safetensors", check_tensors},
                 {"index", check_index},     {"tokenizer", check_tokenizer},
                 {"image", check_image},     {"dataset", check_dataset},
                 {"adapter", check_adapter}, {"checkpoint", check_checkpoint},
                 {"log", check_log}};
    int worst = EXIT_OK, kind = choice_of(CHECK_KINDS, args[0]);
    if (kind < 0) return usage("KIND", CHECK_KINDS, quoted(args[0], strlen(args[0])), "see surgr1 check --help");
    for (int i = 1; i < n; i++) {
        Text out = {0};
        Err e = {0};
        memset(&problems, 0, sizeof problems);
        if (!kinds[kind].check(args[i], &out, &e)) problem(NULL, &e);
        if (problems.found > LIMIT_LISTED) {
            char code[8];
            Err more = {0};
            snprintf(code, sizeof code, "%.5s99", problems.last.code);
            err_set(&more, code, AT(.file = args[i]), "expected no faults; found ... and %lld more; do: %s",
                    (long long)(problems.found - LIMIT_LISTED), "mend the first ones and run this again");
            err_report(&more);
        }
        if (check.print && !problems.found && out.len) fwrite(out.p, 1, out.len, stdout);
        if (problems.rc > worst) worst = problems.rc;
        text_free(&out);
    }
    return worst;
}

const Command command_check = {"check",
                               "check KIND FILE...",
                               "Runs one reader alone. KIND: " CHECK_KINDS ".\n"
                               "checkpoint takes the folder of one, or a run folder; log a run.jsonl or timing.jsonl.\n"
                               "Exit 0 when every file is accepted, 3 when one is refused, 4 when one cannot be read,\n"
                               "9 when a checkpoint or a log is damaged.",
                               check_options,
                               2,
                               1 << 20,
                               "a kind and files",
                               run_check};
