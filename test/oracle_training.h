// oracle_training.h - the part of test_oracle.c that trains: gradients, adapters and whole trajectories of oracle/models.
//
// What it is:     Hugging Face autograd, PEFT and torch.optim on the same batches, against model_pass, lora.c and train.c.
// What it is not: a program. test_oracle.c includes it behind the helpers it uses.
// Read before:    test_oracle.c, test/fixtures/README.md (what the files hold).
//
// Beside the values that are compared, --plant knows four faults of whole files: "a missing tensor" and "an unknown
// tensor" (in any file of expected tensors), "half a pair" and "a pair" (left out of the adapter that is loaded).

// A batch of cases: inputs and labels from the files, as sequences of one pack.
typedef struct TrainCase {
    Ids ids, grid;
    uint8_t *trained;
    float *pixels;
    Grid grids[16];
    int n_grids;
} TrainCase;
static void train_case_free(TrainCase *t) { ids_free(&t->ids), ids_free(&t->grid), free(t->trained), free(t->pixels); }

static bool train_case_read(Case *c, const Model *m, const char *dir, const TensorFile *labels, const char *name,
                            TrainCase *t) {
    ModelCase mc = {.c = c, .m = (Model *)(uintptr_t)m};
    Err e = {0};
    char file[300];
    *t = (TrainCase){0};
    snprintf(file, sizeof file, "%s.safetensors", name);
    if (!tensors_open(&mc.f, path_of(dir, file).p, &e)) return case_refused(c, &e);
    bool ok = needed_ints(&mc, "input_ids", &t->ids);
    if (ok && tensors_find(&mc.f, "image_grid_thw")) {
        ok = needed_ints(&mc, "image_grid_thw", &t->grid) && t->grid.n <= 48;
        int64_t patches = 0,
                values = m->c.vision.channels * m->c.vision.temporal * m->c.vision.patch * m->c.vision.patch;
        for (int64_t i = 0; ok && i + 2 < t->grid.n; i += 3) {
            Grid g = {t->grid.p[i], t->grid.p[i + 1], t->grid.p[i + 2]};
            t->grids[t->n_grids++] = g, patches += grid_patches(g);
        }
        ok = ok && (t->pixels = needed_floats(&mc, "pixel_values", patches * values));
    }
    const Tensor *label = tensors_find(labels, name);
    if (ok && (!label || label->elements != t->ids.n))
        case_broken(c, "labels.safetensors holds nothing fitting for %s", name), ok = false;
    t->trained = alloc_or_die((size_t)t->ids.n + 1, 1, "labels");
    for (int64_t i = 0, v; ok && i < t->ids.n; i++) {
        tensor_to_i64(label, i, 1, &v);
        t->trained[i] = v != -100;
        if (v != -100 && v != t->ids.p[i])
            case_broken(c, "label %lld of %s is another id", (long long)i, name), ok = false;
    }
    tensors_close(&mc.f);
    return ok;
}

// Mean cross-entropy over all targets of the named cases and its gradients (into the model's). NAN: broken.
static double batch_loss(Case *c, Model *m, const char *dir, const TensorFile *labels, const Json *batch,
                         int64_t *targets) {
    Pack pack = {0};
    Err e = {0};
    bool ok = batch && batch->type == JSON_ARRAY && batch->count;
    if (!ok) case_broken(c, "the index names no batch");
    for (const Json *name = ok ? batch->child : NULL; ok && name; name = name->next) {
        TrainCase t = {0};
        ok = name->type == JSON_STRING && train_case_read(c, m, dir, labels, name->str, &t);
        Sequence s = {.ids = t.ids.p,
                      .n = t.ids.n,
                      .n_prompt = t.ids.n,
                      .trained = t.trained,
                      .pixels = t.pixels,
                      .grids = t.grids,
                      .n_grids = t.n_grids};
        if (ok && !pack_add(&pack, &m->c, &s, &e)) ok = case_refused(c, &e);
        train_case_free(&t);
    }
    double loss = NAN;
    if (ok) {
        const TrainBatch *b = pack_batch(&pack, false, 0, keep_layers);
        float *dlp = alloc_or_die((size_t)b->N, sizeof *dlp, "weights"),
              *lp = alloc_or_die((size_t)b->N, sizeof *lp, "lp");
        *targets = 0;
        for (int64_t i = 0; i < b->N; i++) *targets += b->targets[i] >= 0;
        for (int64_t i = 0; i < b->N; i++) dlp[i] = -1.0f / (float)*targets;
        model_zero_gradients(m);
        if (model_pass(m, b, dlp, lp, NULL, &e)) {
            loss = 0;
            for (int64_t i = 0; i < b->N; i++) loss -= (double)lp[i] / (double)*targets;
        } else case_refused(c, &e);
        free(dlp), free(lp);
    }
    pack_free(&pack);
    return loss;
}

// The parameter that a stored tensor speaks of: original names, or PEFT's with either module tree.
static Param *param_of(const Model *m, const char *stored) {
    static const char prefix[] = "base_model.model.", saved[] = "modules_to_save.";
    char name[300], plain[300];
    if (!strncmp(stored, prefix, sizeof prefix - 1)) stored += sizeof prefix - 1;
    snprintf(plain, sizeof plain, "%s", stored);
    char *part = strstr(plain, saved);
    if (part) memmove(part, part + sizeof saved - 1, strlen(part + sizeof saved - 1) + 1);
    canonical_name(name, sizeof name, plain);
    for (int64_t i = 0; i < m->n_params; i++)
        if (!strcmp(m->params[i].name, name)) return &m->params[i];
    return NULL;
}

// Every tensor of the file against a value (or gradient) of the model; and every parameter that the file has to speak
// of: all of them when merged, else the trained ones. A parameter that took no part has no gradient in torch, and zeros
// here.
static void compare_tensors(Case *c, Rule rule, const Model *m, const char *path, bool gradients, const char *except) {
    TensorFile f;
    Err e = {0};
    if (!tensors_open(&f, path, &e)) {
        case_refused(c, &e);
        return;
    }
    bool *spoken_of = alloc_or_die((size_t)m->n_params, sizeof *spoken_of, "names");
    for (int64_t i = 0; i < f.count; i++) {
        const Tensor *t = &f.tensors[i];
        if (except && !strcmp(t->name, except)) continue;
        if (planted("a missing tensor") && i == f.count / 2) continue;
        const Param *p = planted("an unknown tensor") && i == f.count / 2 ? NULL : param_of(m, t->name);
        Mat value = p ? gradients ? p->w->d : p->w->v : mat_none();
        if (p && p->tied) continue;
        if (!p || !value.p || t->elements != value.rows * value.cols) {
            case_broken(c, "%s: the model has no such %s", t->name, gradients ? "gradient" : "value");
            continue;
        }
        float *got = alloc_or_die((size_t)t->elements, sizeof *got, "got"),
              *want = alloc_or_die((size_t)t->elements, sizeof *want, "want");
        m->d->download(mat(got, value.rows, value.cols, value.type), value);
        for (int64_t k = value.type == BF16 ? t->elements : 0; k-- > 0;) // widen from the end, in place
            got[k] = bf16_to_f32(((uint16_t *)got)[k]);
        tensor_to_f32(t, 0, t->elements, want);
        compare_floats(c, rule, t->name, got, want, t->elements);
        free(got), free(want);
        spoken_of[p - m->params] = true;
    }
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (spoken_of[i] || p->tied || (rule != MERGED && !p->trained)) continue;
        bool zero = gradients;
        if (gradients) {
            float *got = alloc_or_die((size_t)(p->rows * p->cols), sizeof *got, "got");
            m->d->download(mat(got, p->rows, p->cols, F32), p->w->d);
            for (int64_t k = 0; zero && k < p->rows * p->cols; k++) zero = got[k] == 0;
            free(got);
        }
        if (!zero) case_broken(c, "%s does not speak of %s", path, p->name);
    }
    free(spoken_of);
    tensors_close(&f);
}

// size: what a difference is measured by where the expected number is zero.
static void compare_number(Case *c, Rule rule, const char *what, double got, double want, double size) {
    if (want != 0) size = fabs(want);
    if (planted(what)) got += 0.01 * size;
    measure(c, rule, what, fabs(got - want) / size);
}

// Twenty updates or so: loss, norm and learning rate at each, then the weights.
static void compare_trajectory(Case *c, Model *m, const char *dir, const TensorFile *labels, const Json *t,
                               const char *final) {
    const Json *h = json_get(t, "hyperparameters"), *batches = json_get(t, "batches"), *rows = json_get(t, "rows");
    if (!h || !batches || !rows || !batches->count) {
        case_broken(c, "no hyperparameters, batches or rows");
        return;
    }
    double lr = number_of(h, "lr", 0);
    AdamOptions a = {.lr = {lr, lr, lr},
                     .beta1 = number_of(h, "beta1", 0),
                     .beta2 = number_of(h, "beta2", 0),
                     .eps = number_of(h, "eps", 0),
                     .decay = number_of(h, "weight_decay", 0),
                     .clip = number_of(h, "clip", 0)};
    Schedule s = {.kind = SCHEDULE_COSINE, .warmup = int_of(h, "warmup"), .steps = int_of(h, "steps")};
    if (s.steps < 1 || rows->count != (uint64_t)s.steps) {
        case_broken(c, "%u rows of %lld updates", rows->count, (long long)s.steps);
        return;
    }
    Optimizer o;
    Err e = {0};
    if (!optimizer_open(&o, m, &a, &e)) {
        case_refused(c, &e);
        return;
    }
    for (const Json *row = rows->child; row && !c->broken[0]; row = row->next) {
        int64_t step = int_of(row, "step"), targets = 0;
        const Json *batch = batches->child;
        for (int64_t k = int_of(row, "batch"); batch && k > 0; k--) batch = batch->next;
        double factor = schedule_factor(&s, step), loss = batch_loss(c, m, dir, labels, batch, &targets);
        double norm = gradient_norm(&o, m);
        optimizer_step(&o, m, factor, norm);
        char what[80];
        snprintf(what, sizeof what, "loss of update %lld", (long long)step);
        compare_number(c, TRAJECTORY, what, loss, number_of(row, "loss", NAN), 1);
        snprintf(what, sizeof what, "gradient norm of update %lld", (long long)step);
        compare_number(c, TRAJECTORY, what, norm, number_of(row, "grad_norm", NAN), 1);
        snprintf(what, sizeof what, "learning rate of update %lld", (long long)step);
        compare_number(c, TRAJECTORY, what, lr * factor, number_of(row, "lr", NAN), lr);
        if (targets != int_of(row, "targets"))
            case_broken(c, "%lld targets in update %lld", (long long)targets, (long long)step);
    }
    compare_tensors(c, TRAINED, m, final, false, NULL);
    optimizer_close(&o, m);
}

// lora_load of an adapter, or of a copy of it that lacks its first lora_B (half a pair), or its first lora_A and lora_B.
static bool load_adapter(Model *m, const char *adapter, Err *e) {
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
    int missing = planted("half a pair") ? 1 : planted("a pair") ? 2 : 0;
    if (!missing) return lora_load(m, adapter, e);
    char dir[] = "/tmp/test_oracle_XXXXXX", *config;
    size_t size;
    TensorFile f;
    if (!file_read(path_of(adapter, files[0]).p, LIMIT_CONFIG_BYTES, "E-JS-01", &config, &size, e)) return false;
    bool ok = tensors_open(&f, path_of(adapter, files[1]).p, e);
    if (ok) {
        TensorOut *out = alloc_or_die((size_t)f.count, sizeof *out, "tensors of the copy");
        int64_t n = 0;
        for (int64_t i = 0; i < f.count; i++) { // by name: a module's lora_B stands behind its lora_A
            const Tensor *t = &f.tensors[i];
            if (missing && strstr(t->name, missing == 2 ? ".lora_A." : ".lora_B.")) missing--;
            else {
                out[n] = (TensorOut){.name = t->name, .type = t->type, .dims = t->dims, .data = t->data};
                memcpy(out[n++].shape, t->shape, sizeof t->shape);
            }
        }
        CHECK(mkdtemp(dir), "%s cannot be made", dir);
        ok = file_write_atomic(path_of(dir, files[0]).p, config, size, e) &&
             tensors_write(path_of(dir, files[1]).p, out, n, e) && lora_load(m, dir, e);
        remove(path_of(dir, files[0]).p), remove(path_of(dir, files[1]).p), remove(dir);
        free(out), tensors_close(&f);
    }
    free(config);
    return ok;
}

// A model of its own for every comparison that changes it.
static bool fresh(Case *c, Model *m, const Path *folder, const Json *index, const char *adapter) {
    Err e = {0};
    if (!model_load(m, path_of(folder->p, text_of(index, "checkpoint")).p, device, (LoadOptions){0}, &e))
        return case_refused(c, &e);
    for (int64_t i = 0; i < m->n_params; i++) m->params[i].trained = !adapter;
    if ((!adapter || load_adapter(m, adapter, &e)) && model_train_open(m, &e)) return true;
    model_free(m);
    return case_refused(c, &e);
}

static void run_gradients(Case *c, const Path *folder, const Json *index, const Json *what, const TensorFile *labels,
                          const char *adapter, const char *stored, const char *except) {
    Model m;
    int64_t targets = 0;
    if (!fresh(c, &m, folder, index, adapter)) return;
    double loss = batch_loss(c, &m, folder->p, labels, json_get(what, "batch"), &targets);
    compare_number(c, GRADIENT, "loss", loss, number_of(what, "loss", NAN), 1);
    if (targets != int_of(what, "targets")) case_broken(c, "%lld targets", (long long)targets);
    compare_tensors(c, GRADIENT, &m, stored, true, except);
    model_free(&m);
}

static void run_trajectory(Case *c, const Path *folder, const Json *index, const Json *what, const TensorFile *labels,
                           const char *adapter, const char *final) {
    Model m;
    if (!fresh(c, &m, folder, index, adapter)) return;
    compare_trajectory(c, &m, folder->p, labels, json_get(what, "trajectory"), final);
    model_free(&m);
}

// The logits of a case with the adapter beside the weights, and once more with it merged into them.
static void run_adapter(Case *c, const Path *folder, const Json *index, const Json *what, const TensorFile *labels,
                        const char *adapter, const char *stored, const char *merged) {
    Model m;
    TrainCase t = {0};
    TensorFile f;
    Err e = {0};
    if (!fresh(c, &m, folder, index, adapter)) return;
    if (!tensors_open(&f, stored, &e)) {
        case_refused(c, &e), model_free(&m);
        return;
    }
    const Tensor *want = tensors_find(&f, "logits");
    if (train_case_read(c, &m, folder->p, labels, text_of(what, "logits_case"), &t) && want &&
        want->elements == t.ids.n * m.c.V) {
        float *expected = alloc_or_die((size_t)want->elements, sizeof *expected, "logits");
        tensor_to_f32(want, 0, want->elements, expected);
        PromptIds p = {t.ids.p, t.ids.n, t.pixels, t.grids, t.n_grids, 0};
        for (int pass = 0; pass < 2; pass++) {
            if (pass && !lora_merge(&m, &e)) {
                case_refused(c, &e);
                break;
            }
            float *got = logits_of(c, &m, p, 0, p.n, NULL, NULL);
            if (got) compare_floats(c, ADAPTER, pass ? "logits when merged" : "logits", got, expected, want->elements);
            free(got);
        }
        free(expected);
        if (file_exists(merged) && !m.lora) compare_tensors(c, MERGED, &m, merged, false, NULL);
    } else if (!c->broken[0]) case_broken(c, "no logits that fit the case");
    train_case_free(&t);
    tensors_close(&f);
    model_free(&m);
}

static void run_training(const char *dir) {
    Names folders = names_in(dir, "", "");
    for (size_t i = 0; i < folders.n; i++) {
        Path folder = path_of(dir, folders.p[i]), index = path_of(folder.p, "index.json");
        Err e = {0};
        JsonDoc doc = {0};
        TensorFile labels = {0};
        Case c;
        if (!folder_exists(folder.p) || !json_read(&doc, index.p, LIMIT_CONFIG_BYTES, (JsonOptions){0}, &e)) continue;
        const Json *full = json_get(doc.root, "full"), *lora = json_get(doc.root, "lora");
        bool trains = full || (lora && lora->count);
        if (trains && !tensors_open(&labels, path_of(folder.p, "labels.safetensors").p, &e)) {
            if (case_begin(&c, "training/%s", folders.p[i])) case_refused(&c, &e), case_end(&c);
            trains = false;
        }
        if (trains && full) {
            if (case_begin(&c, "training/%s/full/gradients", folders.p[i]))
                run_gradients(&c, &folder, doc.root, full, &labels, NULL,
                              path_of(folder.p, "gradients_full.safetensors").p, NULL),
                    case_end(&c);
            if (json_get(full, "trajectory") && case_begin(&c, "training/%s/full/trajectory", folders.p[i]))
                run_trajectory(&c, &folder, doc.root, full, &labels, NULL,
                               path_of(folder.p, "trajectory_full_final.safetensors").p),
                    case_end(&c);
        }
        for (const Json *a = trains && lora ? lora->child : NULL; a; a = a->next) {
            const char *name = text_of(a, "name");
            Path where = path_of(folder.p, name), adapter = path_of(where.p, "adapter"),
                 stored = path_of(where.p, "gradients.safetensors");
            if (case_begin(&c, "training/%s/%s/gradients", folders.p[i], name))
                run_gradients(&c, &folder, doc.root, a, &labels, adapter.p, stored.p, "logits"), case_end(&c);
            if (case_begin(&c, "training/%s/%s/logits", folders.p[i], name))
                run_adapter(&c, &folder, doc.root, a, &labels, adapter.p, stored.p,
                            path_of(where.p, "merged.safetensors").p),
                    case_end(&c);
            if (json_get(a, "trajectory") && case_begin(&c, "training/%s/%s/trajectory", folders.p[i], name))
                run_trajectory(&c, &folder, doc.root, a, &labels, adapter.p,
                               path_of(where.p, "trajectory_final.safetensors").p),
                    case_end(&c);
        }
        if (trains) tensors_close(&labels);
        json_free(&doc);
    }
    names_free(&folders);
}
