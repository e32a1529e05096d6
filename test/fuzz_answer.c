// fuzz_answer.c - any bytes as a model's completion: one status, views inside the text, linear work, an OK text that is
// written again is read the same, and no reward for what is not there. The first byte picks the task.
#include "../surgr1.h"

static bool inside(View v, View whole) { return !v.len || (v.p >= whole.p && v.p + v.len <= whole.p + whole.len); }

static void check_boxes(const char *text, size_t size) {
    static Box a[64], b[64];
    int n = answer_boxes(text, size, a, 64);
    CHECK(n >= 0 && n <= 64 && answer_boxes(text, size, b, 64) == n, "a second reading differs");
    for (int i = 0; i < n; i++) {
        const double v[4] = {a[i].x1, a[i].y1, a[i].x2, a[i].y2};
        for (int k = 0; k < 4; k++) CHECK(fabs(v[k]) < 1e6, "a number no box can hold");
        CHECK(memchr(a[i].label, 0, sizeof a[i].label) != NULL, "a label without an end");
    }
}

static void check_form(const Answer *a, size_t size) {
    CHECK(a->status < ANSWER_STATUSES, "no status");
    CHECK(a->steps <= 20 * (size + 1), "%zu steps for %zu bytes", a->steps, size);
    CHECK(inside(a->think, a->text) && inside(a->answer, a->text) && inside(a->preamble, a->think), "a view outside");
    for (int k = 0; k < 3; k++)
        CHECK(!a->level[k].found ||
                  (inside(a->level[k].text, a->think) && !memcmp(a->text.p + a->level[k].at, "Level", 5)),
              "a level outside");
    if (a->status != ANSWER_OK) return;
    Text t = {0};
    Answer again;
    text_addf(&t, "<think>");
    text_add(&t, a->think.p, a->think.len);
    text_addf(&t, "</think>\n<answer>");
    text_add(&t, a->answer.p, a->answer.len);
    text_addf(&t, "</answer>");
    answer_parse(&again, t.p, t.len);
    CHECK(again.status == ANSWER_OK && again.headers == a->headers && again.think.len == a->think.len &&
              again.answer.len == a->answer.len && !memcmp(again.answer.p, a->answer.p, a->answer.len),
          "written again it is read as something else");
    text_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[2] = {"surg-r1", "surgery-r1"};
    static const char *const choices[] = {"Preparation", "grasper"};
    static Reward r, twice;
    Box truth[2] = {{1, 2, 30, 40, "grasper"}, {5, 6, 70, 80, "hook"}};
    if (!size) return 0;
    TaskItem t = {.task = (enum Task)(data[0] % TASKS), .id = "x", .answer = "grasper", .boxes = truth, .width = 100};
    t.height = 90, t.n_boxes = task_info(t.task)->kind == ANSWER_BOXES ? 2 : 1;
    if (data[0] & 0x80) t.choices = choices, t.n_choices = 2;
    const char *text = (const char *)data + 1;
    size--;
    check_boxes(text, size);
    for (int preset = 0; preset < 2; preset++) {
        RewardOptions o;
        CHECK(reward_preset(&o, names[preset]), "no preset");
        o.box = (enum BoxReward)(data[0] % 6), o.coherence = (enum CoherenceReward)(data[0] % 4);
        o.language = (enum LanguageReward)(data[0] % 3), o.structure = (enum StructureMode)(data[0] % 2);
        RewardInput in = {.item = &t, .text = text, .len = size, .tokens = -1, .resized_w = 112, .resized_h = 84};
        reward_score(&r, &o, &in), reward_score(&twice, &o, &in);
        check_form(&r.answer, size);
        CHECK(r.reading.n_boxes >= 0 && r.reading.n_boxes <= ANSWER_MAX_BOXES, "a number of boxes");
        CHECK(isfinite(r.total) && r.total == twice.total && r.total <= 3.5 + 1e-9, "a total");
        CHECK(!(r.term[REWARD_FORMAT] > 0) || r.answer.status == ANSWER_OK, "format for a text that has none");
        CHECK(r.answer.has_answer || (!(r.term[REWARD_ANSWER] > 0) && !(r.term[REWARD_LANGUAGE] > 0)),
              "nothing is right");
        for (int k = 0; k < REWARD_OVERLONG; k++)
            CHECK(isnan(r.term[k]) || (r.term[k] >= 0 && r.term[k] <= 1), "%s is %g", reward_term_names[k], r.term[k]);
    }
    return 0;
}
