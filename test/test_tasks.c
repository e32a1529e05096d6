// test_tasks.c - how questions, answers and records of tasks are worded.
#include "../surgr1.h"
#include "test.h"

static Box one_box[] = {{10, 20, 30.5, 40, "grasper"}};
static Box two_boxes[] = {{10, 20, 30.5, 40, "grasper"}, {100, 50, 200, 120, "hook"}};
static const char *const phase_names[] = {"preparation", "calot triangle dissection", "clipping and cutting"};

static TaskItem item_of(enum Task t, const char *id) {
    TaskItem x = {.task = t,
                  .id = id,
                  .dataset = "scenes",
                  .procedure = "laparoscopic cholecystectomy",
                  .patient = "p1",
                  .video = "1",
                  .split = "train",
                  .image = "frames/1.png",
                  .answer = "yes",
                  .frame = 7,
                  .width = 200,
                  .height = 120};
    enum AnswerKind k = task_info(t)->kind;
    if (t == TASK_TOOL_BOX || t == TASK_TISSUE_BOX || t == TASK_GRID) x.slot = "cystic_duct";
    if (t == TASK_VQA || t == TASK_VQLA) x.question = "What is the state of the hook?";
    if (k == ANSWER_BOX || k == ANSWER_VQLA) x.boxes = one_box, x.n_boxes = 1;
    if (k == ANSWER_BOXES) x.boxes = two_boxes, x.n_boxes = 2;
    if (k == ANSWER_BOX || k == ANSWER_BOXES) x.answer = NULL;
    return x;
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what)) n++;
    return n;
}

TEST(every_question_holds_one_image_inside_its_sentence) {
    for (int t = 0; t < TASKS; t++)
        for (int compat = 0; compat < 2; compat++)
            for (int k = 0; k < 40; k++) {
                char id[20];
                snprintf(id, sizeof id, "q-%d", k);
                TaskItem x = item_of((enum Task)t, id);
                Text q = {0};
                task_question(&x, (TaskWording){.seed = 3, .compat = compat}, &q);
                EXPECT_INT(count(q.p, "<image>"), 1);
                EXPECT(strncmp(q.p, "<image>", 7) != 0); // text stands in front of it
                EXPECT(!strstr(q.p, "{procedure}") && !strstr(q.p, "{slot}") && !strstr(q.p, "{question}"));
                EXPECT(!x.slot || strstr(q.p, "cystic duct")); // without the underscore
                EXPECT(!x.question || strstr(q.p, x.question));
                text_free(&q);
            }
}

TEST(the_seed_and_the_id_choose_among_several_wordings) {
    for (int t = 0; t < TASKS; t++) {
        char *seen[8] = {0};
        int kinds = 0;
        for (int k = 0; k < 60; k++) {
            char id[20];
            snprintf(id, sizeof id, "q-%d", k);
            TaskItem x = item_of((enum Task)t, id);
            Text q = {0}, again = {0};
            task_question(&x, (TaskWording){.seed = 3}, &q);
            task_question(&x, (TaskWording){.seed = 3}, &again);
            EXPECT_STR(q.p, again.p);
            text_free(&again);
            int j = 0;
            while (j < kinds && strcmp(seen[j], q.p)) j++;
            if (j == kinds && kinds < 8) seen[kinds++] = q.p;
            else text_free(&q);
        }
        EXPECT_INT(kinds, 5);
        for (int j = 0; j < kinds; j++) free(seen[j]);
    }
    int differ = 0;
    for (int k = 0; k < 60; k++) {
        char id[20];
        snprintf(id, sizeof id, "q-%d", k);
        differ += task_pick(1, id, 0, 5) != task_pick(2, id, 0, 5);
    }
    EXPECT(differ > 30);
}

TEST(choices_are_lettered_and_the_answer_takes_the_letter_of_its_option) {
    TaskItem x = item_of(TASK_PHASE, "a");
    Text q = {0}, a = {0};
    x.choices = phase_names, x.n_choices = 3, x.answer = "clipping and cutting";
    task_question(&x, (TaskWording){.choices = true}, &q);
    EXPECT(strstr(q.p, "\nA. preparation\nB. calot triangle dissection\nC. clipping and cutting"));
    EXPECT(task_answer_text(&x, (TaskWording){.choices = true}, &a));
    EXPECT_STR(a.p, "C. clipping and cutting");
    a.len = 0;
    EXPECT(task_answer_text(&x, (TaskWording){0}, &a));
    EXPECT_STR(a.p, "clipping and cutting");
    a.len = 0, x.answer = "something else";
    EXPECT(!task_answer_text(&x, (TaskWording){.choices = true}, &a)); // no letter is made up
    EXPECT_INT(a.len, 0);
    q.len = 0;
    task_question(&x, (TaskWording){0}, &q);
    EXPECT(!strchr(q.p, '\n'));
    text_free(&q), text_free(&a);
}

TEST(an_item_without_its_answer_gives_none) {
    for (int t = 0; t < TASKS; t++) {
        TaskItem x = item_of((enum Task)t, "a");
        Text a = {0};
        EXPECT(task_answer_text(&x, (TaskWording){0}, &a) && a.len > 0);
        a.len = 0, x.answer = NULL, x.n_boxes = 0;
        bool none = t == TASK_TOOL_BOXES; // an empty field of view has an answer
        EXPECT(task_answer_text(&x, (TaskWording){0}, &a) == none && (a.len > 0) == none);
        text_free(&a);
    }
}

typedef struct Seen {
    const char *want;
    FrameSize size;
} Seen;

static bool look(Record *r, const Seen *s, Err *e) {
    EXPECT_INT(r->n_images, 1);
    EXPECT_STR(r->images[0], "frames/1.png");
    if (!record_place_boxes(r, &s->size, e)) return false;
    const Message *m = &r->messages[r->n - 1];
    Text whole = {0};
    for (int i = 0; i < m->n_parts; i++) text_add(&whole, m->parts[i].text, m->parts[i].len);
    EXPECT_STR(m->role, "assistant");
    if (s->want) EXPECT_STR(whole.p, s->want);
    text_free(&whole);
    return true;
}

TEST(records_of_every_task_are_training_records_and_their_boxes_are_rescaled) {
    static const char *const boxes[TASKS] = {
        [TASK_TOOL_BOX] = "{\"bbox_2d\": [20, 60, 61, 120], \"label\": \"grasper\"}",
        [TASK_TOOL_BOXES] = "[{\"bbox_2d\": [20, 60, 61, 120], \"label\": \"grasper\"}, "
                            "{\"bbox_2d\": [200, 150, 399, 359], \"label\": \"hook\"}]",
        [TASK_VQLA] = "{\"answer\": \"yes\", \"bbox_2d\": [20, 60, 61, 120]}"};
    static const char *const compat[TASKS] = {[TASK_TOOL_BOX] = "[20, 60, 61, 120]",
                                              [TASK_TOOL_BOXES] = "grasper[20, 60, 61, 120], hook[200, 150, 399, 359]"};
    for (int t = 0; t < TASKS; t++)
        for (int k = 0; k < 4; k++) {
            TaskItem x = item_of((enum Task)t, "a");
            TaskWording w = {.compat = k & 1, .reasoning = k > 1};
            Text answer = {0}, line = {0};
            Record r;
            Err e = {0};
            Seen s = {.want = w.compat ? compat[t] : boxes[t], .size = {200, 120, 400, 360}};
            x.truth = "{\"tools\":[]}";
            EXPECT(task_answer_text(&x, w, &answer));
            task_record_print(&x, w, answer.p, "\"teacher\":\"test\"", &line);
            EXPECT(line.p[line.len - 1] == '\n' && !memchr(line.p, '\n', line.len - 1));
            Piece p = {.text = line.p, .len = line.len - 1, .number = 1, .line = 1, .col = 1};
            bool ok = record_parse_piece(&r, &p, "test", (RecordOptions){.boxes = true}, &e);
            if (!ok) FAIL("%s: %s: %s", task_info((enum Task)t)->name, e.expected, e.found);
            else {
                EXPECT_INT(r.n, w.reasoning ? 3 : 2);
                EXPECT(look(&r, &s, &e));
                const Json *root = r.doc.root;
                EXPECT(json_is(json_get(root, "task"), task_info((enum Task)t)->name));
                EXPECT(json_is(json_get(root, "teacher"), "test"));
                EXPECT(json_get(json_get(root, "truth"), "tools"));
                record_free(&r);
            }
            text_free(&answer), text_free(&line);
        }
}

TEST(a_record_without_a_completion_ends_with_the_question) {
    TaskItem x = item_of(TASK_TOOL_BOX, "a");
    Text line = {0};
    Record r;
    Err e = {0};
    task_record_print(&x, (TaskWording){0}, NULL, NULL, &line);
    EXPECT(record_parse(&r, line.p, line.len - 1, "test", 1, &e)); // no box in a text: any reader takes it
    EXPECT_INT(r.n, 1);
    EXPECT_STR(r.messages[0].role, "user");
    const Json *box = json_get(r.doc.root, "boxes");
    EXPECT(box && box->count == 1 && json_get(box->child, "box")->child->number == 10);
    record_free(&r);
    text_free(&line);
}

TEST(lists_and_grid_cells_are_named) {
    const char *const names[] = {"a", "b", "c"};
    Text t = {0};
    task_list_text(names, 3, &t);
    EXPECT_STR(t.p, "a, b and c");
    t.len = 0;
    task_list_text(names, 1, &t);
    EXPECT_STR(t.p, "a");
    text_free(&t);
    EXPECT_STR(task_grid_cell(0, 0, 90, 30), "upper left");
    EXPECT_STR(task_grid_cell(29.9, 10, 90, 30), "middle left");
    EXPECT_STR(task_grid_cell(45, 15, 90, 30), "center");
    EXPECT_STR(task_grid_cell(60, 9, 90, 30), "upper right");
    EXPECT_STR(task_grid_cell(90, 30, 90, 30), "lower right");
    for (int k = 0; k < TASKS; k++) EXPECT_INT(task_of(task_info((enum Task)k)->name), k);
    EXPECT_INT(task_of("nothing"), -1);
}

// ---------------------------------------------------------------------------------------------------------- protocol
static const char *walked(const char *const *tools, int n, int criteria, ProtocolMove moves[PROTOCOL_MOST_MOVES]) {
    bool met[3] = {criteria & 1, criteria >> 1 & 1, criteria >> 2 & 1};
    return moves[protocol_walk(tools, n, met, moves) - 1].action;
}

TEST(the_protocol_is_walked_as_worked_out_by_hand) {
    // retract +3 cut, +1 clip; structures met: clip to dissect; triangle met: to cut; plate met: to dissect
    static const char *const tools[] = {"hook", "grasper", "grasper"};
    static const char *const want[5][3] = {{"hook", "", "cut"},
                                           {"grasper", "", "clip"},
                                           {"structures", "yes", "dissect"},
                                           {"triangle", "yes", "cut"},
                                           {"plate", "yes", "dissect"}};
    ProtocolMove m[PROTOCOL_MOST_MOVES];
    EXPECT_STR(walked(tools, 3, 7, m), "dissect");
    for (int i = 0; i < 5; i++) {
        EXPECT_STR(m[i].fact, want[i][0]);
        EXPECT_STR(m[i].value, want[i][1]);
        EXPECT_STR(m[i].action, want[i][2]);
    }
    EXPECT_STR(walked(NULL, 0, 0, m), "aspirate"); // no instrument: retract; not met: cut, irrigate, aspirate
    EXPECT_STR(m[1].action, "irrigate");
}

TEST(one_false_fact_never_ends_right) {
    ProtocolMove m[PROTOCOL_MOST_MOVES];
    for (int set = 0; set < 64; set++)
        for (int criteria = 0; criteria < 8; criteria++) {
            const char *tools[6], *end;
            int n = 0;
            for (int i = 0; i < 6; i++)
                if (set >> i & 1) tools[n++] = cholect50_instruments[i];
            end = walked(tools, n, criteria, m);
            for (int k = 0; k < 3; k++) EXPECT(strcmp(walked(tools, n, criteria ^ 1 << k, m), end) != 0);
            if (n) EXPECT(strcmp(walked(tools, n - 1, criteria, m), end) != 0);
        }
}

TEST(no_fact_of_the_protocol_gives_its_end_away) {
    // Over all sets of instruments and criteria: the order of instruments does not matter, and an action follows each
    // value of each fact about as often as any other.
    int ends[6 + 3][2][PROTOCOL_ACTIONS] = {{{0}}};
    ProtocolMove m[PROTOCOL_MOST_MOVES];
    for (int set = 0; set < 64; set++)
        for (int criteria = 0; criteria < 8; criteria++) {
            const char *up[12], *down[6];
            int n = 0;
            for (int i = 0; i < 6; i++)
                if (set >> i & 1) up[n++] = cholect50_instruments[i];
            for (int i = 0; i < n; i++) down[i] = up[n - 1 - i], up[n + i] = up[i];
            const char *end = walked(up, n, criteria, m);
            EXPECT_INT(protocol_walk(up, 2 * n, (bool[3]){0}, m), n + 3); // each of them once
            EXPECT_STR(walked(down, n, criteria, m), end);
            for (int a = 0; a < PROTOCOL_ACTIONS; a++)
                for (int f = 0; f < 9 && !strcmp(protocol_actions[a], end); f++)
                    ends[f][(f < 6 ? set >> f : criteria >> (f - 6)) & 1][a]++;
        }
    for (int f = 0; f < 9; f++)
        for (int v = 0; v < 2; v++)
            for (int a = 0; a < PROTOCOL_ACTIONS; a++)
                if (ends[f][v][a] < 256 / 20 || ends[f][v][a] > 256 / 4)
                    FAIL("fact %d, value %d: %s %d times of 256", f, v, protocol_actions[a], ends[f][v][a]);
}
