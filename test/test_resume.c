// test_resume.c - a run of surgr1 sft that was killed, stopped, damaged or moved ends with the bytes of one that was not.
//
// What it is:  a driver of the shipped program (SURGR1 names it). Every proof is by two judges: surgr1 compare, and the
//              comparison of trainer.h.
// What it is not: system calls that fail (test_crash.sh), or run folders without a trainer (test_run.c).
//
// SURGR1_KILLS=N is the number of random kills, 10 when it is not set; SURGR1_SEED=N moves their instants; SURGR1_DEVICE
// is cpu when it is not set.
#define _GNU_SOURCE
#include "trainer.h"

enum { LORA, FULL, ACCUMULATED, FROZEN, STALE, RESCALED, N_VARIANTS };
static Variant variants[N_VARIANTS] = {
    [LORA] = {.name = "lora",
              .options =
                  "--lora-rank 4 --lora-dropout 0.1 --lr 5e-3 --batch 2 --steps 12 --save-every 2 --eval-every 4 "
                  "--eval-samples 4 --sample-every 6 --sample-tokens 6",
              .steps = 12},
    [FULL] = {.name = "full",
              .options = "--full decoder,vision,merger --lr 1e-3 --weight-decay 0.1 --batch 1 --accumulate 4 --steps 6 "
                         "--save-every 1 --eval-every 2 --eval-samples 2 --export best --keep-last 2",
              .steps = 6},
    [ACCUMULATED] = {.name = "accumulated",
                     .options = "--lora decoder --rslora --lora-rank 2 --lora-dropout 0.3 --lr 5e-3 --batch 2 "
                                "--accumulate 4 --keep 1 --pack-tokens 120 --steps 8 --save-every 3 --schedule wsd",
                     .steps = 8},
    [FROZEN] = {.name = "frozen",
                .options = "--full decoder --freeze embed_tokens,lm_head --dtype f32 --lr 1e-3 --batch 4 --steps 10 "
                           "--save-every 3 --keep-last 2 --keep-every 6 --in-order",
                .steps = 10},
    [STALE] = {.name = "stale", // no evaluation is ever better by 100 than the first: it ends at step 6 of 20
               .options = "--lora-rank 2 --lr 1e-3 --batch 2 --steps 20 --save-every 2 --eval-every 2 --eval-samples 2 "
                          "--patience 2 --min-delta 100",
               .steps = 6},
    [RESCALED] = {.name = "rescaled",
                  .options = "--lora decoder,merger --lora-rank 3 --lr 2e-3 --lr-merger 1e-4 --clip 0.5 --batch 3 "
                             "--epochs 1.5 --save-every 4 --sample-every 2 --samples 1 --sample-tokens 4 --old-keys",
                  .steps = 8}};

static Variant *reference(int which) {
    Variant *v = &variants[which];
    if (v->seconds > 0) return v;
    snprintf(v->dir, sizeof v->dir, "%s/%s", work, v->name);
    double started = clock_seconds();
    EXPECT_EXIT(finish(start(command(v, v->dir, NOTHING_MORE))), 0);
    v->seconds = clock_seconds() - started;
    return v;
}

// -------------------------------------------------------------------------------------------------------- random kills

typedef struct Landed { // where the kills fell
    int64_t all, before, writing, behind, starts, runs;
} Landed;

static void look(const char *dir, const Variant *v, Landed *l) {
    char *ckpt = joined(dir, "ckpt"), last[40];
    Listing x = list(ckpt);
    bool any = false, writing = false, end = false;
    snprintf(last, sizeof last, "step-%09lld", (long long)v->steps);
    for (int i = 0; i < x.n; i++) {
        any |= !strncmp(x.p[i]->d_name, "step-", 5), writing |= x.p[i]->d_name[0] == '.';
        end |= !strcmp(x.p[i]->d_name, last);
    }
    l->all++, l->before += !any, l->writing += writing, l->behind += end;
    list_free(x), free(ckpt);
    // What was once reported as saved stays whole, at any instant.
    int64_t count = 0;
    Err e = {0};
    if (folder_exists(dir) && !run_verify(dir, &count, &e)) FAIL("%s: %s, found %s", v->name, e.file, e.found);
}

// dir: where; on a disk most of the time goes into fsync, in memory into the steps.
static void kill_at_random(const Variant *v, const char *dir, int64_t kills, Landed *l) {
    static const int threads[] = {1, 2, 3, 8};
    bool finished = false;
    double seconds = v->seconds;
    for (int64_t left = kills; left > 0 || !finished;) {
        int n = threads[(int)(4 * uniform())];
        double part = uniform() < 0.25 ? 0.8 + 0.4 * uniform() : 1.1 * uniform(), started = clock_seconds();
        bool from_nothing = !folder_exists(dir);
        pid_t pid = start(command(v, dir, "--threads %d", n));
        if (left > 0) pause_for(part * seconds), kill(pid, SIGKILL);
        int rc = finish(pid);
        l->starts++, finished = rc == 0;
        if (rc == -SIGKILL) left--, look(dir, v, l);
        else if (rc) {
            show_errors("%s ended with %d after a kill", v->name, rc);
            break;
        }
        if (!finished) continue;
        if (from_nothing) seconds = clock_seconds() - started;
        l->runs++;
        if (!expect_equal(v, dir, true)) break;
        if (left > 0) discard(dir);
    }
}

TEST(killed_at_random_instants) {
    const char *wanted = getenv("SURGR1_KILLS"), *seed = getenv("SURGR1_SEED");
    int64_t kills = wanted && *wanted ? strtoll(wanted, NULL, 10) : 10, done = 0;
    random_state = seed && *seed ? strtoull(seed, NULL, 10) : 4;
    int n = kills < 30 ? 3 : 2 * N_VARIANTS;
    char disk[] = "/var/tmp/surgr1-resume-XXXXXX", *in_memory = fresh("killed");
    if (!mkdtemp(disk)) disk[0] = 0;
    char *on_disk = disk[0] ? joined(disk, "killed") : joined(work, "killed-too");
    Landed l = {0};
    for (int i = 0; i < n && !test_failures; i++) {
        int64_t share = kills * (i + 1) / n - done;
        const char *dir = (i + i / N_VARIANTS) % 2 ? on_disk : in_memory;
        discard(dir), kill_at_random(reference(i % N_VARIANTS), dir, share, &l), done += share;
    }
    printf(
        "     %lld kills in %lld starts, %lld runs ended: %lld kills before the first checkpoint, %lld while one was "
        "written or removed, %lld behind the last\n",
        (long long)l.all, (long long)l.starts, (long long)l.runs, (long long)l.before, (long long)l.writing,
        (long long)l.behind);
    EXPECT_INT(l.all, kills);
    if (disk[0]) discard(disk);
    free(in_memory), free(on_disk);
}

// ------------------------------------------------------------------------------------------------------- stop on request

TEST(a_signal_finishes_the_step_saves_and_resumes) {
    Variant *v = reference(ACCUMULATED);
    char *dir = fresh("stopped");
    for (int64_t step = 1, newest; step < v->steps; step = newest + 1) { // SIGINT and SIGTERM by turns, at every step
        pid_t pid = start(command(v, dir, NOTHING_MORE));
        bool there = wait_for_step(pid, step, v->steps);
        kill(pid, step % 2 ? SIGTERM : SIGINT);
        int rc = finish(pid);
        Checkpoint c = {.step = -1};
        Run r = {.lock = -1};
        Err e = {0};
        snprintf(r.dir, sizeof r.dir, "%s", dir);
        EXPECT(there && run_newest(&r, &c, &e));
        newest = c.step;
        checkpoint_free(&c), free(r.verified);
        if (rc == 0 && newest == v->steps) break; // the signal came too late for this start
        EXPECT_EXIT(rc, 75);
        EXPECT_TOLD("start the same command again to resume");
        if (newest < step || test_failures) {
            FAIL("stopped at step %lld, the newest checkpoint is of step %lld", (long long)step, (long long)newest);
            break;
        }
    }
    expect_resumes(v, dir, false);
    free(dir);
}

TEST(a_second_signal_ends_at_once) {
    static Variant slow = {.name = "slow", .options = "--batch 16 --accumulate 6 --threads 1 --lora-rank 2 --steps 3"};
    char *dir = fresh("twice"), *ckpt = joined(dir, "ckpt");
    pid_t pid = start(command(&slow, dir, NOTHING_MORE));
    EXPECT(wait_for_step(pid, 1, 3));
    kill(pid, SIGSTOP), kill(pid, SIGINT), kill(pid, SIGTERM),
        kill(pid, SIGCONT); // both come before its next step ends
    EXPECT_EXIT(finish(pid), 75);
    Listing l = list(ckpt);
    EXPECT_INT(l.n, 0); // one signal would have made a checkpoint
    list_free(l);
    pid = start(command(&slow, dir, NOTHING_MORE));
    EXPECT(wait_for_step(pid, 1, 3));
    kill(pid, SIGINT);
    EXPECT_EXIT(finish(pid), 75);
    l = list(ckpt);
    EXPECT_INT(l.n, 2); // it and LATEST
    list_free(l), free(ckpt), free(dir);
}

// Ends early when started again: the run was over.
TEST(an_early_end_stays_the_end) {
    Variant *v = reference(STALE);
    char *dir = fresh("ended");
    copy_tree(v->dir, dir);
    for (int i = 0; i < 2; i++) expect_resumes(v, dir, true);
    free(dir);
}

TEST(a_finished_run_started_again_stays_as_it_is) {
    for (int which = LORA; which <= FULL; which++) {
        Variant *v = reference(which);
        char *dir = fresh("again");
        copy_tree(v->dir, dir);
        expect_resumes(v, dir, true);
        free(dir);
    }
}

// ---------------------------------------------------------------------------------------------------------------- damage

// A copy of a finished run without its export, so that it has work left.
static char *damaged_copy(const Variant *v, const char *name) {
    char *dir = fresh(name), *export = joined(dir, "export");
    copy_tree(v->dir, dir), discard(export), free(export);
    return dir;
}
enum { FLIP, CUT, REMOVE };
static void damage(const char *path, int how) {
    size_t len = 0;
    char *bytes = slurp(path, &len);
    if (!bytes || !len) FAIL("%s is not there to be damaged", path);
    else if (how == FLIP) bytes[len / 2] ^= 4, spill(path, bytes, len);
    else if (how == CUT) spill(path, bytes, len - 1);
    else remove(path);
    free(bytes);
}

TEST(a_damaged_newest_checkpoint_falls_back_by_one) {
    for (int which = LORA; which <= FULL; which++) {
        Variant *v = reference(which);
        char newest[60];
        snprintf(newest, sizeof newest, "ckpt/step-%09lld", (long long)v->steps);
        char *original = joined(v->dir, newest);
        Listing files = list(original);
        EXPECT(files.n >= 4);
        for (int i = 0; i < files.n; i++)
            for (int how = FLIP; how <= (which == LORA && i < 2 ? REMOVE : FLIP); how++) {
                char *dir = damaged_copy(v, "damaged"), *inside = joined(dir, newest);
                char *path = joined(inside, files.p[i]->d_name);
                damage(path, how);
                EXPECT_EXIT(finish(start(command(v, dir, NOTHING_MORE))), 0);
                EXPECT_TOLD("surgr1: warning E-CK-06: ");
                EXPECT_TOLD("resumed from step ");
                if (!expect_equal(v, dir, true)) FAIL("after damage %d of %s", how, files.p[i]->d_name);
                free(path), free(inside), free(dir);
            }
        list_free(files), free(original);
    }
}

TEST(a_newest_checkpoint_that_is_gone_is_no_matter) {
    Variant *v = reference(LORA);
    char *dir = damaged_copy(v, "gone"), newest[60];
    snprintf(newest, sizeof newest, "ckpt/step-%09lld", (long long)v->steps);
    char *path = joined(dir, newest);
    discard(path);
    expect_resumes(v, dir, true);
    free(path), free(dir);
}

TEST(when_all_checkpoints_are_damaged_nothing_is_touched) {
    Variant *v = reference(LORA);
    char *dir = damaged_copy(v, "hopeless"), *before = fresh("before"), *ckpt = joined(dir, "ckpt");
    Listing l = list(ckpt);
    for (int i = 0; i < l.n; i++) {
        if (strncmp(l.p[i]->d_name, "step-", 5)) continue;
        char *inside = joined(ckpt, l.p[i]->d_name), *path = joined(inside, "optimizer.safetensors");
        damage(path, FLIP), free(path), free(inside);
    }
    list_free(l), copy_tree(dir, before);
    EXPECT_EXIT(finish(start(command(v, dir, NOTHING_MORE))), 9);
    EXPECT_TOLD("surgr1: error E-CK-01: ");
    static const char *const parts[] = {"ckpt", "run.jsonl", "timing.jsonl", "tensorboard", "config.json"};
    for (int i = 0; i < 5; i++) {
        Why w = {{0}};
        char *a = joined(before, parts[i]), *b = joined(dir, parts[i]);
        if (!same_tree(a, b, &w)) FAIL("%s", w.text);
        free(a), free(b);
    }
    free(ckpt), free(before), free(dir);
}

// ------------------------------------------------------------------------------------------- what may differ and what not

TEST(other_options_are_refused_with_both_values) {
    Variant *v = reference(LORA);
    char *dir = damaged_copy(v, "changed"), *other = joined(work, "other.jsonl");
    size_t len = 0;
    EXPECT_EXIT(finish(start(command(v, dir, "--seed 7"))), 9);
    EXPECT_TOLD("error E-CK-05: ");
    EXPECT_TOLD("\"options.seed\" was 0 and is 7");
    EXPECT_EXIT(finish(start(command(v, dir, "--lr 0.004"))), 9);
    EXPECT_TOLD("\"options.lr\" was 0.005 and is 0.004");
    EXPECT_EXIT(finish(start(command(v, dir, "--lora decoder"))), 9);
    EXPECT_TOLD("\"options.lora\" was ");
    // the same file name with one other letter in it
    char *text = slurp(data_file(), &len), *saved = slurp(data_file(), NULL),
         *letter = text ? strstr(text, "liver") : NULL;
    if (letter) *letter = 'L', spill(data_file(), text, len);
    EXPECT_EXIT(finish(start(command(v, dir, NOTHING_MORE))), 9);
    EXPECT_TOLD("error E-CK-05: ");
    EXPECT_TOLD("\"inputs.data\" was ");
    if (saved) spill(data_file(), saved, len);
    // what decides no number may change
    EXPECT_EXIT(finish(start(command(v, dir, "--threads 3 --max-memory 4000000000 --save-every 5 --keep-last 9"))), 0);
    expect_equal(v, dir, true);
    free(text), free(saved), free(other), free(dir);
}

TEST(a_resume_with_other_options_leaves_a_trace) {
    Variant *v = reference(LORA);
    char *dir = damaged_copy(v, "anyway"), *path = joined(dir, "timing.jsonl");
    EXPECT_EXIT(finish(start(command(v, dir, "--steps 13 --resume-anyway options.steps"))), 0);
    char *text = slurp(path, NULL);
    EXPECT(text && strstr(text, "\"ev\":\"resume_anyway\",\"step\":12,\"fields\":[\"options.steps\"]"));
    free(text), free(path), free(dir);
}

TEST(a_checkpoint_of_another_run_is_refused) {
    Variant *v = reference(LORA);
    char *other = fresh("other-run"), *dir = fresh("mixed");
    EXPECT_EXIT(finish(start(command(v, other, "--seed 1"))), 0);
    copy_tree(other, dir); // all of it but the configuration
    char *config = joined(dir, "config.json"), *ours = joined(v->dir, "config.json");
    copy_tree(ours, config);
    EXPECT_EXIT(finish(start(command(v, dir, NOTHING_MORE))), 9);
    EXPECT_TOLD("error E-CK-05: ");
    EXPECT_TOLD("ckpt/step-000000012");
    free(ours), free(config), free(dir), free(other);
}

TEST(one_process_per_run_folder) {
    static Variant slow = {.name = "slow", .options = "--batch 16 --accumulate 6 --threads 1 --lora-rank 2 --steps 3"};
    char *dir = fresh("locked"), holder[40];
    pid_t pid = start(command(&slow, dir, NOTHING_MORE));
    EXPECT(wait_for_step(pid, 1, 3));
    EXPECT_EXIT(finish(start(command(&slow, dir, NOTHING_MORE))), 10);
    EXPECT_TOLD("error E-LK-01: ");
    snprintf(holder, sizeof holder, "pid %ld, ", (long)pid);
    EXPECT_TOLD(holder);
    kill(pid, SIGKILL), finish(pid);
    free(dir);
}

TEST(config_json_makes_the_same_run_in_another_folder) {
    for (int which = LORA; which <= ACCUMULATED; which++) {
        Variant *v = reference(which);
        char *dir = fresh("from-config");
        EXPECT_EXIT(run("sft --config %s/config.json --out %s", v->dir, dir), 0);
        expect_equal(v, dir, true);
        free(dir);
    }
}

TEST(a_dry_run_writes_nothing) {
    Variant *v = reference(LORA);
    char *dir = fresh("dry"), *out = joined(work, "out"), *before = fresh("before");
    EXPECT_EXIT(finish(start(command(v, dir, "--dry-run"))), 0);
    EXPECT(access(dir, F_OK) != 0);
    char *text = slurp(out, NULL);
    EXPECT(text && strstr(text, "dry run: 12 steps"));
    copy_tree(v->dir, before); // nor in a run that is there
    EXPECT_EXIT(finish(start(command(v, v->dir, "--dry-run"))), 0);
    Why w = {{0}};
    if (!same_tree(before, v->dir, &w)) FAIL("%s", w.text);
    free(text), free(before), free(out), free(dir);
}

// ---------------------------------------------------------------------------------------------- the comparisons can fail

// Replaces the first `from` of a file by `to`, of the same length.
static bool replace(const char *path, const char *from, const char *to) {
    size_t len = 0;
    char *text = slurp(path, &len), *at = text ? strstr(text, from) : NULL;
    if (at) memcpy(at, to, strlen(to)), spill(path, text, len);
    free(text);
    return at;
}

// Writes a checkpoint's MANIFEST.json anew for a file that was changed, as someone would who wants it to pass.
static void reseal(const char *dir, const char *name) {
    char *path = joined(dir, "MANIFEST.json"), *file = joined(dir, name), hex[65], key[100];
    size_t len = 0, size = 0;
    char *text = slurp(path, &len), *bytes = slurp(file, &size);
    snprintf(key, sizeof key, "\"name\":\"%s\"", name);
    char *at = text && bytes ? strstr(text, key) : NULL, *sha = at ? strstr(at, "\"sha256\":\"") : NULL;
    char *self = sha ? strstr(sha, ",\"self\":\"") : NULL;
    if (!self) FAIL("no %s in %s", name, path);
    else {
        Text t = {0};
        sha256_hex(bytes, size, hex), memcpy(sha + 10, hex, 64);
        text_add(&t, text, (size_t)(self - text)), text_addf(&t, "}");
        sha256_hex(t.p, t.len, hex), t.len--;
        text_addf(&t, ",\"self\":\"%s\"}\n", hex);
        spill(path, t.p, t.len), text_free(&t);
    }
    free(text), free(bytes), free(path), free(file);
}

// A state with one piece left out, or one bit of it wrong, is found by both comparisons.
TEST(a_lost_piece_of_state_is_noticed) {
    static const struct {
        const char *file, *from, *to;
    } losses[] = {{"state.json", "\"seen\":20", "\"seen\":18"},           // the cursor
                  {"state.json", ",10],\"skipped\"", ",11],\"skipped\""}, // AdamW's count
                  {"state.json", "\"next\":10,", "\"next\":11,"},         // the outlier window
                  {"optimizer.safetensors", NULL, NULL},
                  {"adapter_model.safetensors", NULL, NULL}};
    Variant *v = reference(LORA);
    for (size_t i = 0; i < sizeof losses / sizeof *losses; i++) {
        char *dir = damaged_copy(v, "lossy"), *newest = joined(dir, "ckpt/step-000000012");
        char *at = joined(dir, "ckpt/step-000000010"), *file = joined(at, losses[i].file);
        discard(newest);
        if (losses[i].from) {
            if (!replace(file, losses[i].from, losses[i].to)) FAIL("no %s in %s", losses[i].from, losses[i].file);
        } else damage(file, FLIP);
        reseal(at, losses[i].file);
        EXPECT_EXIT(finish(start(command(v, dir, NOTHING_MORE))), 0);
        EXPECT_TOLD("resumed from step 10 of 12");
        Why w = {{0}};
        // the checkpoint that was changed is not what this is about
        char *from = joined(v->dir, "ckpt/step-000000010");
        copy_tree(from, at), free(from);
        EXPECT(!own_equal(v, v->dir, dir, true, &w));
        EXPECT(!program_equal(v->dir, dir));
        free(newest), free(file), free(at), free(dir);
    }
}

TEST(another_seed_is_another_run) {
    Variant *v = reference(LORA);
    char *dir = fresh("seed");
    Why w = {{0}};
    EXPECT_EXIT(finish(start(command(v, dir, "--seed 1"))), 0);
    EXPECT(!own_equal(v, v->dir, dir, true, &w));
    EXPECT(!program_equal(v->dir, dir));
    free(dir);
}

TEST(a_difference_in_any_part_is_noticed) {
    static const char *const parts[] = {"run.jsonl",
                                        "export/adapter_model.safetensors",
                                        "ckpt/step-000000012/state.json",
                                        "ckpt/step-000000010/optimizer.safetensors",
                                        "ckpt/step-000000012/MANIFEST.json",
                                        "timing.jsonl"};
    Variant *v = reference(LORA);
    for (int i = 0; i < 6; i++)
        for (int how = FLIP; how <= REMOVE; how++) {
            char *dir = fresh("planted");
            copy_tree(v->dir, dir);
            char *path = joined(dir, parts[i]);
            damage(path, how);
            Why w = {{0}};
            if (own_equal(v, v->dir, dir, true, &w)) FAIL("damage %d of %s went unnoticed", how, parts[i]);
            if (i < 5 && program_equal(v->dir, dir)) FAIL("damage %d of %s went unnoticed by compare", how, parts[i]);
            free(path), free(dir);
        }
    // a doubled record of the event file
    char *dir = fresh("planted"), *board = joined(dir, "tensorboard");
    copy_tree(v->dir, dir);
    Listing l = list(board);
    char *path = l.n ? joined(board, l.p[0]->d_name) : NULL;
    size_t len = 0;
    char *bytes = path ? slurp(path, &len) : NULL;
    uint64_t first = 0, second = 0; // records 0 (the version) and 1
    if (bytes) memcpy(&first, bytes, 8), first += 16, memcpy(&second, bytes + first, 8), second += 16;
    Text t = {0};
    text_add(&t, bytes, len), text_add(&t, bytes + first, second);
    if (path) spill(path, t.p, t.len);
    Why w = {{0}};
    EXPECT(!own_equal(v, v->dir, dir, true, &w));
    text_free(&t), free(bytes), free(path), list_free(l), free(board), free(dir);
}
