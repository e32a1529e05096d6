// test_reward.c - rewards: worked numbers, what each missing thing costs, hostile completions, and the record reader.
#include "test.h"

static RewardOptions options;
static Reward r;
static Box truth[8];
static TaskItem item;

static void use(const char *preset) {
    if (!reward_preset(&options, preset)) FAIL("no preset %s", preset);
}
static void ask_about(enum Task task, const char *answer) {
    item = (TaskItem){.task = task, .id = "x", .answer = answer, .boxes = truth, .width = 100, .height = 100};
    if (task_info(task)->kind == ANSWER_BOXES) item.n_boxes = -1; // not known
}
static void is_at(double x1, double y1, double x2, double y2, const char *label) {
    Box *b = &truth[item.n_boxes < 0 ? 0 : item.n_boxes];
    *b = (Box){.x1 = x1, .y1 = y1, .x2 = x2, .y2 = y2};
    snprintf(b->label, sizeof b->label, "%s", label);
    item.n_boxes = item.n_boxes < 0 ? 1 : item.n_boxes + 1;
}
static double score_all(const char *text) {
    RewardInput in = {.item = &item, .text = text, .len = strlen(text), .tokens = -1};
    reward_score(&r, &options, &in);
    return r.total;
}
static double score(const char *answer) { // in a completion that lacks nothing else
    char *text = malloc(strlen(answer) + 100);
    sprintf(text, "<think>Level 1: a\n\nLevel 2: b\n\nLevel 3: c</think>\n<answer>%s</answer>", answer);
    double total = score_all(text);
    free(text); // r.answer points into it: not looked at below
    return total;
}

TEST(surg_r1_adds_format_answer_and_structure) {
    use("surg-r1");
    EXPECT(!reward_preset(&(RewardOptions){0}, "surg-r2"));
    ask_about(TASK_PHASE, "Preparation");
    static const struct {
        const char *text;
        double format, answer, structure;
    } cases[] = {
        {"<think>Level 1: x</think><answer>preparation</answer>", 1, 1, 1},
        {"<think>Level 1: x</think><answer>gallbladder</answer>", 1, 0, 1},
        {"<think>x</think><answer>Preparation.</answer>", 1, 1, 0},
        {"<think>level 1: x</think><answer>Preparation</answer>", 1, 1, 0},
        {"<answer>Preparation</answer>", 0, 1, 0},
        {"Preparation", 0, 0, 0},
        {"<think>Level 1: x</think>Preparation", 0, 0, 1},
        {"Level 1: x<think>y</think><answer>Preparation</answer>", 0, 1, 0},
        {"<think>y</think><answer>Level 1</answer>", 1, 0, 0},
        {"<think>Level 1: x<answer>Preparation</answer>", 0, 1, 0}, // the thought was never ended
        {"<think>Level 1: x Thethink>\n<answer>Preparation</answer>", 0, 1, 0},
        {"<think>Level 1: x</think><answer>Preparation", 0, 0, 1},
        {"<think>Level 1: x</think><answer>Preparation</answer>!", 0, 1, 1},
        {"<think>Level 1: x</think><answer>Preparation</answer><answer>Preparation</answer>", 0, 1, 1},
        {"<think>Level 1: x</think><answer>Preparation Preparation</answer>", 1, 0, 1}, // the label pasted twice
        {"<think>Level 1: x</think><answer></answer>", 0, 0, 1}, // a substring test would call it right
        {"<think>Level 1: x</think><answer>A. Preparation B. Dissection</answer>", 1, 0, 1},
        {"", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double total = score_all(cases[i].text);
        if (r.term[REWARD_FORMAT] != cases[i].format || r.term[REWARD_ANSWER] != cases[i].answer ||
            r.term[REWARD_STRUCTURE] != cases[i].structure)
            FAIL("%s: %g %g %g", cases[i].text, r.term[0], r.term[1], r.term[2]);
        EXPECT_NEAR(total, cases[i].format + cases[i].answer + 0.5 * cases[i].structure, 1e-12);
        EXPECT(isnan(r.term[REWARD_GROUNDING]) && isnan(r.term[REWARD_LANGUAGE]) && isnan(r.term[REWARD_COHERENCE]));
    }
    options.strict_answer = true;
    score_all("<answer>Preparation</answer>");
    EXPECT(r.term[REWARD_ANSWER] == 0);
}

TEST(structure_by_headers_closes_the_loophole) {
    use("surg-r1");
    static const struct {
        enum Task task;
        const char *think;
        double paper, header;
    } cases[] = {{TASK_TOOL, "This is a Level 1 task requiring sight.", 1, 0},
                 {TASK_TOOL, "Level 1: a grasper", 1, 1},
                 {TASK_TRIPLET, "Level 1: a grasper", 1, 0},
                 {TASK_TRIPLET, "Level 1: a grasper\nLevel 2: retracts", 1, 1},
                 {TASK_PHASE, "Level 1: a\nLevel 2: b\nLevel 3: c", 1, 1},
                 {TASK_PHASE, "Level 1: a\nLevel 3: c\nLevel 2: b", 1, 0},
                 {TASK_PHASE, "Level 1: a\nLevel 3: c", 1, 0},
                 {TASK_PHASE, "Level 1:\nLevel 2:\nLevel 3:", 1, 0},
                 {TASK_PHASE, "Level 1: a Level 1: a Level 2: b Level 3: c", 1, 0},
                 {TASK_PHASE, "Level 2: b\nLevel 3: c", 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int mode = 0; mode < 2; mode++) {
            char text[200];
            snprintf(text, sizeof text, "<think>%s</think><answer>x</answer>", cases[i].think);
            ask_about(cases[i].task, "y");
            options.structure = mode ? STRUCTURE_HEADER : STRUCTURE_PAPER;
            score_all(text);
            if (r.term[REWARD_STRUCTURE] != (mode ? cases[i].header : cases[i].paper))
                FAIL("%s: mode %d gives %g", cases[i].think, mode, r.term[REWARD_STRUCTURE]);
        }
    ask_about(TASK_VQA, "y"); // of no level: headers are not asked for
    score_all("<think>Level 1: a</think><answer>y</answer>");
    EXPECT(isnan(r.term[REWARD_STRUCTURE]) && r.total == 2);
}

TEST(the_structure_term_ends_after_a_tenth_of_the_run) {
    use("surg-r1");
    ask_about(TASK_PHASE, "Preparation");
    const char *text = "<think>Level 1: x</think><answer>preparation</answer>";
    static const double want[][3] = {{0, 0, 2.5}, {0, 100, 2.5}, {9, 100, 2.5}, {10, 100, 2}, {99, 100, 2}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        RewardInput in = {.item = &item, .text = text, .len = strlen(text), .tokens = -1};
        in.step = (int64_t)want[i][0], in.steps = (int64_t)want[i][1];
        reward_score(&r, &options, &in);
        EXPECT_NEAR(r.total, want[i][2], 1e-12);
        EXPECT(r.term[REWARD_STRUCTURE] == 1); // measured all the same
    }
}

TEST(one_box_earns_its_iou) {
    use("surg-r1");
    ask_about(TASK_TOOL_BOX, NULL);
    is_at(0, 0, 10, 10, "grasper");
    static const struct {
        const char *answer;
        double iou, giou; // giou: (1 + GIoU) / 2
    } cases[] = {{"[0,0,10,10]", 1, 1},
                 {"grasper(0,0),(10,10)", 1, 1},
                 {"hook(0,0),(10,10)", 1, 1}, // one region was asked for by its name
                 {"[5,0,15,10]", 1.0 / 3, 2.0 / 3},
                 {"[0,0,10,5]", 0.5, 0.75},
                 {"[-10,0,10,10]", 0.5, 0.75}, // not clamped
                 {"[20,0,30,10]", 0, 1.0 / 3},
                 {"[10,10,0,0]", 0, 0}, // not swapped
                 {"[0,10,10,0]", 0, 0},
                 {"[0,0,0,10]", 0, 0},
                 {"[-20,-20,-1,-1]", 0, 0}, // outside
                 {"[100,100,200,200]", 0, 0},
                 {"[nan,0,10,10]", 0, 0},
                 {"[0,0,10,inf]", 0, 0},
                 {"[0,0,1e1,10]", 0, 0},
                 {"[0,0,10]", 0, 0},
                 {"No tools detected", 0, 0},
                 {"", 0, 0},
                 {"[0,0,10,10],[0,0,10,10]", 0.5, 0.5}, // one too many
                 {"[50,50,60,60],[0,0,10,10]", 0.5, 0.5},
                 {"[[[[[[[[0,0,10,10]]]]]]]]", 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        options.box = BOX_IOU;
        score(cases[i].answer);
        if (fabs(r.term[REWARD_ANSWER] - cases[i].iou) > 1e-12 || r.iou != r.term[REWARD_ANSWER])
            FAIL("%s: %.9g", cases[i].answer, r.term[REWARD_ANSWER]);
        options.box = BOX_GIOU;
        score(cases[i].answer);
        if (fabs(r.term[REWARD_ANSWER] - cases[i].giou) > 1e-12)
            FAIL("%s: GIoU %.9g", cases[i].answer, r.term[REWARD_ANSWER]);
        options.box = BOX_IOU50;
        score(cases[i].answer);
        bool one = !strstr(cases[i].answer, "],[");
        EXPECT(r.term[REWARD_ANSWER] == (one ? cases[i].iou >= 0.5 : 0.5));
        EXPECT(r.right == (one && cases[i].iou >= 0.5));
    }
    options.box = BOX_TIERED;
    score("[0,0,10,5]");
    EXPECT_NEAR(r.term[REWARD_ANSWER], 2.0 / 3, 1e-12);
    options.box = BOX_L1;
    score("[9,0,19,10]");
    EXPECT(r.term[REWARD_ANSWER] == 1);
    score("[10,0,20,10]");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    options.box = BOX_GIOU50, options.box_threshold = 0.5;
    score("[0,0,10,5]");
    EXPECT(r.term[REWARD_ANSWER] == 1);
    score("[0,0,10,4.9]");
    EXPECT(r.term[REWARD_ANSWER] == 0);
}

TEST(boxes_are_mapped_from_the_picture_the_model_saw) {
    use("surg-r1");
    ask_about(TASK_TOOL_BOX, NULL);
    item.width = 854, item.height = 480;
    is_at(427, 0, 854, 480, "");
    const char *text = "<think>Level 1: x</think><answer>[420,0,840,476]</answer>";
    RewardInput in = {
        .item = &item, .text = text, .len = strlen(text), .tokens = -1, .resized_w = 840, .resized_h = 476};
    reward_score(&r, &options, &in);
    EXPECT_NEAR(r.term[REWARD_ANSWER], 1, 1e-12);
    in.resized_w = 0;
    reward_score(&r, &options, &in);
    EXPECT_NEAR(r.term[REWARD_ANSWER], 413.0 * 476 / (427 * 480 + 420 * 476 - 413 * 476), 1e-12);
    text = "<think>Level 1: x</think><answer>[845,0,850,476]</answer>"; // inside the file, outside of what was shown
    in.text = text, in.len = strlen(text), in.resized_w = 840;
    reward_score(&r, &options, &in);
    EXPECT(r.term[REWARD_ANSWER] == 0);
}

TEST(many_boxes_are_matched_one_to_one_by_name) {
    use("surg-r1");
    ask_about(TASK_TOOL_BOXES, NULL);
    is_at(0, 0, 10, 10, "grasper"), is_at(4, 0, 14, 10, "grasper");
    // best pair by pair would take (2,0,12,10) for the first: .667 + .143; the best matching is .6 + .667
    score("grasper(2,0),(12,10), grasper(0,0),(6,10)");
    EXPECT_NEAR(r.term[REWARD_ANSWER], (0.6 + 2.0 / 3) / 2, 1e-12);
    score("grasper(0,0),(6,10), grasper(2,0),(12,10)");
    EXPECT_NEAR(r.term[REWARD_ANSWER], (0.6 + 2.0 / 3) / 2, 1e-12);
    score("grasper(0,0),(10,10)");
    EXPECT_NEAR(r.term[REWARD_ANSWER], 0.5, 1e-12); // the other is missing
    score("grasper(0,0),(10,10), hook(4,0),(14,10)");
    EXPECT_NEAR(r.term[REWARD_ANSWER], 0.5, 1e-12); // another name
    score("(0,0),(10,10), (4,0),(14,10)");
    EXPECT(r.term[REWARD_ANSWER] == 0); // no name
    score("Grasper(4,0),(14,10), grasper(0,0),(10,10)");
    EXPECT_NEAR(r.term[REWARD_ANSWER], 1, 1e-12);
    EXPECT(r.right);
    score("grasper(4,0),(14,10), grasper(0,0),(10,10), grasper(0,0),(10,10), grasper(0,0),(10,10)");
    EXPECT_NEAR(r.term[REWARD_ANSWER], 0.5, 1e-12);
    EXPECT(!r.right);
    Text many = {0};
    for (int i = 0; i < 5000; i++) text_addf(&many, "grasper(0,0),(10,10) ");
    score(many.p);
    EXPECT(r.term[REWARD_ANSWER] == 0 && r.term[REWARD_FORMAT] == 0); // TOO_MANY
    text_free(&many);

    ask_about(TASK_TOOL_BOXES, NULL);
    item.n_boxes = 0; // known to be empty
    score("No tools detected");
    EXPECT(r.term[REWARD_ANSWER] == 1 && r.right);
    score("[]");
    EXPECT(r.term[REWARD_ANSWER] == 1);
    score("nonsense");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    score("(0,0),(1,1e1)");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    score("grasper(0,0),(10,10)");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    is_at(5, NAN, 5, 5, "grasper"); // a broken truth: worth nothing, and the search ends
    for (int box = BOX_IOU; box <= BOX_GIOU50; box++) {
        options.box = (enum BoxReward)box;
        score("grasper(0,0),(10,10), grasper(5,5),(5,5)");
        EXPECT(isfinite(r.term[REWARD_ANSWER]));
    }
    options.box = BOX_IOU;
    item.n_boxes = -1; // not known: nothing to score
    score("grasper(0,0),(10,10)");
    EXPECT(isnan(r.term[REWARD_ANSWER]) && !r.right && isfinite(r.total));
}

static double best_of(int n, double w[5][5], int row, unsigned taken) { // by trying all orders
    double best = 0;
    if (row == n) return 0;
    for (int j = 0; j < n; j++)
        if (!(taken & 1u << j)) best = fmax(best, w[row][j] + best_of(n, w, row + 1, taken | 1u << j));
    return best;
}

TEST(the_matching_is_the_best_of_all) {
    use("surg-r1");
    for (uint32_t k = 0; k < 3000; k++) {
        Box a[5] = {0}, b[5] = {0};
        double w[5][5] = {0};
        int na = (int)(6 * random_uniform(5, RANDOM_TEST, k, 0)), nb = (int)(6 * random_uniform(5, RANDOM_TEST, k, 1));
        for (int i = 0; i < 10; i++) {
            Box *box = i < 5 ? &a[i] : &b[i - 5];
            double u[4];
            for (uint32_t j = 0; j < 4; j++) u[j] = random_uniform(6, RANDOM_TEST, k, 4 * (uint32_t)i + j);
            *box = (Box){floor(40 * u[0]), floor(40 * u[1]), 0, 0, ""};
            box->x2 = box->x1 + 5 + 40 * u[2], box->y2 = box->y1 + 5 + 40 * u[3];
        }
        int n = na > nb ? na : nb;
        for (int i = 0; i < na; i++)
            for (int j = 0; j < nb; j++) w[i][j] = box_iou(&a[i], &b[j]);
        double want = n ? best_of(n, w, 0, 0) / n : 1;
        EXPECT_NEAR(boxes_match(a, na, b, nb, 200, 200, &options), want, 1e-12);
    }
}

TEST(surgery_r1_adds_grounding_language_and_coherence) {
    use("surgery-r1");
    ask_about(TASK_VQLA, "left-top");
    item.width = 1280, item.height = 1024;
    is_at(100, 50, 300, 400, "");
    static const struct {
        const char *answer;
        double format, grounding, language, coherence;
    } cases[] = {
        {"{\"answer\": \"left-top\", \"bbox_2d\": [100, 50, 300, 400]}", 1, 1, 1, 1},
        {"{\"answer\": \"Left_Top\", \"bbox_2d\": [100, 50, 300, 225]}", 1, 0.5, 1, 1},
        {"{\"answer\": \"left-top\", \"bbox_2d\": [100, 50, 300, 224]}", 1, 174.0 / 350, 1, 0},
        {"{\"answer\": \"kidney\", \"bbox_2d\": [100, 50, 300, 400]}", 1, 1, 0, 0},
        {"{\"answer\": \"left-top\"}", 0, 0, 1, 0},
        {"{\"bbox_2d\": [100, 50, 300, 400]}", 0, 1, 0, 0},
        {"left-top [100, 50, 300, 400]", 0, 1, 1, 1},
        {"(100,50),(300,400)", 0, 1, 0, 0},
        {"left-top", 0, 0, 1, 0},
        {"{\"answer\": \"left-top\", \"bbox_2d\": [300, 400, 100, 50]}", 1, 0, 1, 0},
        {"{\"answer\": \"left-top\", \"bbox_2d\": [100, 50, 300, 400]", 0, 0, 0, 0}, // no JSON, so nothing is read
        {"{\"answer\": \"left-top\", \"answer\": \"kidney\", \"bbox_2d\": [100, 50, 300, 400]}", 0, 0, 0, 0},
        {"{\"answer\": \"\", \"bbox_2d\": [100, 50, 300, 400]}", 0, 1, 0, 0},
        {"{\"answer\": [\"left-top\"], \"bbox_2d\": [[100, 50, 300, 400]]}", 0, 0, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double total = score(cases[i].answer);
        if (r.term[REWARD_FORMAT] != cases[i].format || fabs(r.term[REWARD_GROUNDING] - cases[i].grounding) > 1e-12 ||
            r.term[REWARD_LANGUAGE] != cases[i].language || r.term[REWARD_COHERENCE] != cases[i].coherence)
            FAIL("%s: %g %g %g %g", cases[i].answer, r.term[REWARD_FORMAT], r.term[REWARD_GROUNDING],
                 r.term[REWARD_LANGUAGE], r.term[REWARD_COHERENCE]);
        EXPECT_NEAR(total, 0.5 * cases[i].format + cases[i].grounding + cases[i].language + cases[i].coherence, 1e-12);
        EXPECT(isnan(r.term[REWARD_ANSWER]) && isnan(r.term[REWARD_STRUCTURE]));
    }
    options.box = BOX_IOU50; // here it is IoU > 0.5
    score(cases[1].answer);
    EXPECT(r.term[REWARD_GROUNDING] == 0 && r.term[REWARD_COHERENCE] == 1);
    options.coherence = COHERENCE_PRODUCT;
    score(cases[2].answer);
    EXPECT_NEAR(r.term[REWARD_COHERENCE], 174.0 / 350, 1e-12);
    options.language = LANGUAGE_IN_VOCAB;
    score(cases[3].answer);
    EXPECT(r.term[REWARD_LANGUAGE] == 0.1);
    score("{\"answer\": \"spleen\", \"bbox_2d\": [100, 50, 300, 400]}");
    EXPECT(r.term[REWARD_LANGUAGE] == 0);
    ask_about(TASK_VQA, "organ being operated is kidney");
    options.language = LANGUAGE_TOKEN_F1;
    score("The organ is the kidney"); // organ, is, kidney of 5 and 5 words
    EXPECT_NEAR(r.term[REWARD_LANGUAGE], 0.6, 1e-12);
    EXPECT(isnan(r.term[REWARD_GROUNDING]) && isnan(r.term[REWARD_COHERENCE]) && r.term[REWARD_FORMAT] == 1);
    score("organ organ organ organ organ");
    EXPECT_NEAR(r.term[REWARD_LANGUAGE], 0.2, 1e-12);
    score("Organ being operated is kidney.");
    EXPECT(r.term[REWARD_LANGUAGE] == 1);
}

TEST(coherence_of_place_and_of_thought) {
    use("surgery-r1");
    options.coherence = COHERENCE_QUADRANT;
    ask_about(TASK_VQLA, "left-top");
    is_at(0, 0, 40, 40, "");
    static const struct {
        const char *answer;
        double agrees;
    } cases[] = {{"{\"answer\": \"left-top\", \"bbox_2d\": [10, 10, 20, 20]}", 1},
                 {"{\"answer\": \"right-bottom\", \"bbox_2d\": [60, 60, 80, 80]}", 1}, // wrong, but of one mind
                 {"{\"answer\": \"left-top\", \"bbox_2d\": [60, 10, 80, 20]}", 0},
                 {"{\"answer\": \"left-bottom\", \"bbox_2d\": [10, 60, 20, 80]}", 1},
                 {"{\"answer\": \"left-top\", \"bbox_2d\": [20, 20, 10, 10]}", 0},
                 {"{\"answer\": \"left-top\"}", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        score(cases[i].answer);
        if (r.term[REWARD_COHERENCE] != cases[i].agrees) FAIL("%s: %g", cases[i].answer, r.term[REWARD_COHERENCE]);
    }
    item.answer = "kidney"; // no place was asked for
    score(cases[0].answer);
    EXPECT(isnan(r.term[REWARD_COHERENCE]));
    options.coherence = COHERENCE_TRACE;
    static const struct {
        const char *think;
        double agrees;
    } traces[] = {{"The Kidney lies at [10, 10, 20, 20].", 1}, {"The kidney lies at (10,10),(20,20).", 1},
                  {"The kidney lies at [10, 10, 20, 21].", 0}, {"The kidneys lie at [10, 10, 20, 20].", 0},
                  {"The liver lies at [10, 10, 20, 20].", 0},  {"The kidney is seen.", 0}};
    for (size_t i = 0; i < sizeof traces / sizeof *traces; i++) {
        char text[300];
        snprintf(text, sizeof text,
                 "<think>%s</think><answer>{\"answer\": \"kidney\", \"bbox_2d\": [10, 10, 20, 20]}</answer>",
                 traces[i].think);
        score_all(text);
        if (r.term[REWARD_COHERENCE] != traces[i].agrees) FAIL("%s: %g", traces[i].think, r.term[REWARD_COHERENCE]);
    }
}

TEST(shaping_terms_of_length_and_repetition) {
    use("surg-r1");
    ask_about(TASK_PHASE, "Preparation");
    options.max_tokens = 100, options.overlong_buffer = 20;
    options.weight[REWARD_OVERLONG] = 1;
    static const double lengths[][4] = {// tokens, overlong, cosine when right, when wrong
                                        {0, 0, 1, -0.5},    {50, 0, 0.75, -0.25}, {80, 0, -9, -9},
                                        {90, -0.5, -9, -9}, {100, -1, 0.5, 0},    {101, -1, 0.5, 0}};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int right = 0; right < 2; right++) {
            const char *text = right ? "<think>Level 1: x</think><answer>preparation</answer>"
                                     : "<think>Level 1: x</think><answer>liver</answer>";
            RewardInput in = {.item = &item, .text = text, .len = strlen(text), .tokens = (int64_t)lengths[i][0]};
            reward_score(&r, &options, &in);
            EXPECT_NEAR(r.term[REWARD_OVERLONG], lengths[i][1], 1e-12);
            double cosine = lengths[i][right ? 2 : 3];
            if (cosine != -9) EXPECT_NEAR(r.term[REWARD_COSINE], cosine, 1e-12);
            EXPECT_NEAR(r.total, (right ? 2.5 : 1.5) + lengths[i][1], 1e-12);
        }
    score_all("a b c A B C"); // abc bca cab abc
    EXPECT_NEAR(r.term[REWARD_REPETITION], -0.25, 1e-12);
    EXPECT(isnan(r.term[REWARD_OVERLONG]) && isnan(r.term[REWARD_COSINE])); // no tokens were given
    score_all("The The The the Thethink>");
    EXPECT_NEAR(r.term[REWARD_REPETITION], -1.0 / 3, 1e-12);
    score_all("a b");
    EXPECT(r.term[REWARD_REPETITION] == 0);
    const int32_t ids[] = {7, 8, 7, 8, 7, 8};
    RewardInput in = {.item = &item, .text = "", .tokens = 6, .ids = ids};
    reward_score(&r, &options, &in);
    EXPECT_NEAR(r.term[REWARD_REPETITION], -0.5, 1e-12);
    options.ngram = 0;
    reward_score(&r, &options, &in);
    EXPECT(isnan(r.term[REWARD_REPETITION]));
}

// What a completion lacks earns nothing, whatever the rest says; and nothing is worth more than a right one.
TEST(hostile_completions) {
    size_t big = 1 << 20;
    char *a = malloc(big + 200), *deep = malloc(4000);
    memset(a, 'x', big);
    strcpy(a + big, "<think>Level 1: x</think><answer>grasper retract gallbladder</answer>");
    memset(deep, '[', 1500), memset(deep + 1500, ']', 1500), deep[3000] = 0;
    use("surg-r1");
    ask_about(TASK_TRIPLET, "grasper retract gallbladder");
    EXPECT(score_all(a) == 0 && r.answer.status == ANSWER_TOO_LONG);
    score("grasper retract gallbladder\xFF");
    EXPECT(r.term[REWARD_ANSWER] == 0 && r.term[REWARD_FORMAT] == 0);
    score("grasper retract gallbladder grasper retract gallbladder");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    score("grasper retract gallbladder, hook dissect liver, hook dissect gallbladder");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    score_all("<think>Level 1: x<think>y</think></think><answer>grasper retract gallbladder</answer>");
    EXPECT(r.term[REWARD_FORMAT] == 0);
    ask_about(TASK_TOOL_BOXES, NULL);
    is_at(0, 0, 10, 10, "grasper");
    EXPECT(score(deep) == 1.5 && r.term[REWARD_ANSWER] == 0);
    score("{\"bbox_2d\": [0, 0, 10, 10], \"label\": \"grasper\", \"more\": {\"a\": {\"b\": {\"c\": {}}}}}");
    EXPECT(r.term[REWARD_ANSWER] == 0);
    score("grasper(0,0),(999999,999999)");
    EXPECT(r.term[REWARD_ANSWER] < 1e-9);
    free(a), free(deep);
}

TEST(mutated_completions_earn_no_more_than_they_should) {
    static const char *const seed =
        "<think>Level 1: x\nLevel 2: y\nLevel 3: z</think>\n<answer>{\"answer\": \"left-top\", "
        "\"bbox_2d\": [10, 10, 20, 20]}</answer>";
    int formatted = 0, full = 0;
    for (uint32_t k = 0; k < 20000; k++) {
        char text[300];
        size_t n = strlen(seed);
        memcpy(text, seed, n + 1);
        int edits = (int)(4 * random_uniform(21, RANDOM_TEST, k, 0));
        for (int i = 0; i < edits; i++) {
            uint32_t at = 1 + 3 * (uint32_t)i;
            size_t place = (size_t)(random_uniform(21, RANDOM_TEST, k, at) * (double)n);
            if (random_uniform(21, RANDOM_TEST, k, at + 1) < 0.5) memmove(text + place, text + place + 1, n-- - place);
            else text[place] = "<>/[]{}\",10 \n\xFFL"[(int)(15 * random_uniform(21, RANDOM_TEST, k, at + 2))];
        }
        for (int preset = 0; preset < 2; preset++) {
            use(preset ? "surgery-r1" : "surg-r1");
            ask_about(TASK_VQLA, "left-top");
            is_at(10, 10, 20, 20, "");
            RewardInput in = {.item = &item, .text = text, .len = n, .tokens = -1};
            reward_score(&r, &options, &in);
            double total = r.total;
            for (int t = 0; t < REWARD_REPETITION; t++) EXPECT(isnan(r.term[t]) || (r.term[t] >= 0 && r.term[t] <= 1));
            if (r.term[REWARD_FORMAT] > 0 && r.answer.status != ANSWER_OK)
                FAIL("format for %s", answer_status_names[r.answer.status]);
            if (!r.answer.has_answer && total > 0.5) FAIL("%.*s: %g without an answer", (int)n, text, total);
            if (total > (preset ? 3.5 : 2.5) + 1e-12) FAIL("%g", total);
            formatted += r.term[REWARD_FORMAT] > 0, full += r.right;
            reward_score(&r, &options, &in);
            EXPECT(r.total == total);
        }
    }
    EXPECT(formatted > 5000 && full > 5000 && formatted < 39000);
}

// ---------------------------------------------------------------------------------------------------------- records
static bool record(TaskRecord *t, const char *line, char code[8]) {
    Err e = {0};
    bool ok = task_record_read(t, line, strlen(line), "f.jsonl", 7, &e);
    snprintf(code, 8, "%s", e.code);
    return ok;
}

TEST(a_record_is_read_as_it_was_printed) {
    char code[8];
    Box b[2] = {{1.5, 2, 30, 40, "grasper"}, {5, 6, 70, 80, "hook"}};
    const char *choices[] = {"Preparation", "Calot Triangle Dissection"};
    TaskItem in = {
        .task = TASK_TOOL_BOXES, .id = "scenes-1", .dataset = "scenes", .procedure = "laparoscopic cholecystectomy"};
    in.patient = "p", in.video = "12", in.split = "train", in.image = "frames/1.png", in.choices = choices,
    in.n_choices = 2;
    in.boxes = b, in.n_boxes = 2, in.frame = 3, in.width = 100, in.height = 90, in.truth = "{\"count\":2}";
    Text line = {0};
    task_record_print(&in, (TaskWording){0}, "<think>x</think>", "\"response\":\"<answer>y</answer>\",\"tokens\":9",
                      &line);
    TaskRecord t;
    if (!record(&t, line.p, code)) {
        FAIL("%s for %s", code, line.p);
        return;
    }
    const TaskItem *o = &t.item;
    EXPECT(o->task == in.task && !strcmp(o->id, in.id) && !strcmp(o->dataset, in.dataset) && !strcmp(o->patient, "p"));
    EXPECT(!strcmp(o->procedure, in.procedure) && !strcmp(o->video, "12") && !strcmp(o->split, "train"));
    EXPECT(!strcmp(o->image, in.image) && o->frame == 3 && o->width == 100 && o->height == 90);
    EXPECT(o->n_boxes == 2 && !memcmp(&o->boxes[0].x1, &b[0].x1, 32) && !strcmp(o->boxes[1].label, "hook"));
    EXPECT(o->n_choices == 2 && !strcmp(o->choices[1], choices[1]) && !strcmp(o->truth, in.truth));
    EXPECT(t.response_len == 18 && !memcmp(t.response, "<answer>y</answer>", 18) && t.tokens == 9);
    EXPECT(t.prompt && strstr(t.prompt, "<image>"));
    task_record_free(&t);
    text_free(&line);
}

TEST(records_of_other_systems) {
    char code[8];
    TaskRecord t;
    EXPECT(record(
        &t,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Given <image>, which phase?\\nA. Preparation\\nB. Calot "
        "Triangle Dissection\"}],\"images\":[\"f.png\"],\"labels\":[\"B. Calot Triangle Dissection\"],"
        "\"prediction\":\"<answer>B</answer>\"}",
        code));
    EXPECT(t.item.task == TASK_VQA && !strcmp(t.item.id, "7") && t.item.n_choices == 2);
    EXPECT_STR(t.item.choices[1], "Calot Triangle Dissection");
    use("surg-r1");
    reward_score(&r, &options,
                 &(RewardInput){.item = &t.item, .text = t.response, .len = t.response_len, .tokens = -1});
    EXPECT(r.term[REWARD_ANSWER] == 1 && r.term[REWARD_FORMAT] == 0);
    task_record_free(&t);
    EXPECT(record(&t, "{\"id\":5,\"answer\":3,\"task\":\"count\",\"video\":12,\"output\":\"a\\u0000b\"}", code));
    EXPECT(!strcmp(t.item.id, "5") && !strcmp(t.item.answer, "3") && !strcmp(t.item.video, "12") &&
           t.response_len == 3);
    task_record_free(&t);
    EXPECT(record(&t, "{\"task\":\"tool_boxes\"}", code) && t.item.n_boxes == -1 && !t.response);
    task_record_free(&t);
    EXPECT(record(&t, "{\"task\":\"tool_boxes\",\"boxes\":[]}", code) && t.item.n_boxes == 0);
    task_record_free(&t);
    static const char *const bad[][2] = {{"[]", "E-DS-01"},
                                         {"{\"id\":\"\"}", "E-DS-03"},
                                         {"{\"id\":[]}", "E-DS-02"},
                                         {"{\"id\":\"a\\u0001\"}", "E-DS-05"},
                                         {"{\"task\":\"toool\"}", "E-DS-02"},
                                         {"{\"task\":3}", "E-DS-02"},
                                         {"{\"answer\":[\"a\",\"b\"]}", "E-DS-02"},
                                         {"{\"response\":{}}", "E-DS-02"},
                                         {"{\"size\":[10]}", "E-DS-02"},
                                         {"{\"size\":[0,10]}", "E-DS-02"},
                                         {"{\"size\":\"10\"}", "E-DS-02"},
                                         {"{\"boxes\":{}}", "E-DS-02"},
                                         {"{\"boxes\":[3]}", "E-DS-02"},
                                         {"{\"boxes\":[{\"box\":[1,2,3]}]}", "E-DS-02"},
                                         {"{\"boxes\":[{\"box\":[1,2,3,\"4\"]}]}", "E-DS-02"},
                                         {"{\"boxes\":[{\"box\":[3,2,1,4]}]}", "E-DS-06"},
                                         {"{\"size\":[10,10],\"boxes\":[{\"box\":[1,2,3,11]}]}", "E-DS-06"},
                                         {"{\"choices\":[3]}", "E-DS-02"},
                                         {"{\"task\":\"vqa\",\"task\":\"vqa\"}", "E-JS-08"},
                                         {"{\"tokens\":-1}", "E-CF-02"},
                                         {"{", "E-JS-04"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (record(&t, bad[i][0], code)) {
            FAIL("%s was taken", bad[i][0]);
            task_record_free(&t);
        } else if (strcmp(code, bad[i][1])) FAIL("%s: %s", bad[i][0], code);
}

TEST(ten_thousand_completions_in_under_a_second) {
    use("surg-r1");
    const char *line =
        "{\"id\":\"a\",\"task\":\"tool_boxes\",\"size\":[854,480],\"boxes\":[{\"label\":\"grasper\",\"box\":[1,2,30,40]"
        "},"
        "{\"label\":\"hook\",\"box\":[100,2,300,40]}],\"response\":\"<think>Level 1: a grasper and a hook"
        "</think><answer>grasper(1,2),(30,40), hook(100,2),(300,39)</answer>\"}";
    struct timespec from, to;
    double sum = 0;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    for (int i = 0; i < 10000; i++) {
        TaskRecord t;
        char code[8];
        if (!record(&t, line, code)) break;
        reward_score(&r, &options,
                     &(RewardInput){.item = &t.item, .text = t.response, .len = t.response_len, .tokens = -1});
        sum += r.total;
        task_record_free(&t);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    double took = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    EXPECT_NEAR(sum / 10000, 1 + (1 + 37.0 / 38) / 2 + 0.5, 1e-9);
#ifdef SURGR1_DEBUG
    (void)took; // sanitizers take their time
#else
    if (took > 1) FAIL("%.2f s", took);
#endif
}
