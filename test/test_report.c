// test_report.c - the report on runs: which completions it picks, tints, curves, the ablation table, pictures once.
#include "temporary.h"
#include "../surgr1.h"

// A run folder with logs, written line by line as a trainer does.
static const char *run_folder(const char *name, const char *log, const char *const *members, int n) {
    static char dir[8][600];
    static int turn;
    char *d = dir[turn++ % 8], path[700];
    Log l;
    Err e = {0};
    snprintf(d, sizeof dir[0], "%s", tmp_folder(name)), snprintf(path, sizeof path, "%s/%s", d, log);
    bool ok = log_open(&l, path, -1, &e);
    for (int k = 0; ok && k < n; k++) ok = log_write(&l, members[k], &e);
    log_close(&l);
    if (!ok) FAIL("%s", e.found);
    return d;
}
static char *page; // of the last report; the code of its refusal is in `refused`
static char refused[8];
static bool report(ReportOptions o) {
    Err e = {0};
    int64_t cards;
    size_t size;
    const char *out = tmp_path("report.html");
    o.out = out, o.title = "test", o.max_items = 100, o.max_side = 64;
    free(page), page = NULL, remove(out);
    bool ok = report_write(&o, &cards, &e) && file_read(out, 1 << 26, "E-JS-01", &page, &size, &e);
    snprintf(refused, sizeof refused, "%s", e.code);
    return ok;
}
static int count(const char *what) {
    int n = 0;
    for (const char *p = page; p && (p = strstr(p, what)); p += strlen(what)) n++;
    return n;
}
static bool has(const char *what) { return count(what) > 0; }
// Where `what` stands in the page; -1: nowhere.
static long place(const char *what) {
    const char *p = page ? strstr(page, what) : NULL;
    return p ? (long)(p - page) : -1;
}

enum { LINE = 900, ROOM = 400 };
static char lines[ROOM][LINE];
static const char *const *line_list(void) {
    static const char *list[ROOM];
    for (int k = 0; k < ROOM; k++) list[k] = lines[k];
    return list;
}
static void completion(char *line, int step, int group, int member, double advantage) {
    snprintf(
        line, LINE,
        "\"ev\":\"completion\",\"step\":%d,\"group\":%d,\"member\":%d,\"id\":\"s%dg%d\",\"task\":\"task%d\",\"level\":"
        "2,"
        "\"text\":\"said %d\",\"tokens\":2,\"stopped\":true,\"status\":\"OK\",\"reward\":{\"format\":1,\"answer\":%d},"
        "\"total\":1,\"advantage\":%g,\"right\":%s,\"pieces\":[\"sa\",\"id\"],\"entropy\":[0.5,0.25],"
        "\"weight\":[1.5,0.5]",
        step, group, member, step, group, group, member, advantage > 0, advantage, advantage > 0 ? "true" : "false");
}

TEST(groups_with_spread_are_shown_from_the_first_the_middle_and_the_last_step) {
    int n = 0;
    for (int step = 1; step <= 9; step++)
        for (int group = 0; group < 3; group++)
            for (int member = 0; member < 4; member++) // group 0 of every step and all of step 9 but group 2 are flat
                completion(lines[n++], step, group, member,
                           group == 0 || (step == 9 && group != 2) ? 0
                           : member % 2                            ? 1
                                                                   : -1);
    const char *run = run_folder("chosen", "rollouts.jsonl", line_list(), n);
    run_folder("chosen", "run.jsonl", NULL, 0);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 3}));
    EXPECT_INT(count("<div class=group>"), 3);
    EXPECT_INT(count("<div class=member>"), 12);
    EXPECT(has("<span>step 1 ") && has("<span>step 5 ") && has("<code>s9g2</code> <span>step 9 "));
    EXPECT(!has("no spread") && has("27 groups, 10 of them without spread"));
    EXPECT(has("2 of 4 right") && has("task1") && has("task2")); // two steps, two tasks
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 100}));
    EXPECT_INT(count("<div class=group>"), 27);
    EXPECT_INT(count("no spread: "), 10);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 0}));
    EXPECT(!has("id=rollouts"));
}

TEST(members_stand_by_advantage_and_of_many_the_best_and_the_worst) {
    for (int member = 0; member < 11; member++) completion(lines[member], 1, 0, member, (member * 4) % 11 - 5);
    const char *run = run_folder("members", "rollouts.jsonl", line_list(), 11);
    run_folder("members", "run.jsonl", NULL, 0);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 12}));
    static const int left_in[] = {5, 4, 3, 2, -2, -3, -4, -5};
    long before = 0;
    for (int k = 0; k < 8; k++) {
        char text[40];
        snprintf(text, sizeof text, "<b>A %+.2f</b>", (double)left_in[k]);
        EXPECT(place(text) > before);
        before = place(text);
    }
    EXPECT_INT(count("<div class=member>"), 8);
    EXPECT(has("3 between these are not shown") && has("width:50.0%") && has("width:20.0%"));
}

TEST(tokens_are_tinted_by_their_weight) {
    const char *members =
        "\"ev\":\"completion\",\"step\":1,\"group\":0,\"member\":0,\"task\":\"t\",\"id\":\"i\",\"text\":\"whole text\","
        "\"advantage\":1,\"pieces\":[\"aa\",\"bb\",\"cc\",\"dd\",\"ee\",\"ff\",\"gg\"],\"entropy\":[0.5,1,2,0,0,0,null]"
        ","
        "\"weight\":[0.2,1.1,1.5,100,0,null,0.7]";
    const char *run = run_folder("tints", "rollouts.jsonl", &members, 1);
    run_folder("tints", "run.jsonl", NULL, 0);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 1}));
    EXPECT(has(
        "<i class=l4 title=\"w 0.2 H 0.5\">aa</i><i title=\"w 1.1 H 1\">bb</i><i class=m1 title=\"w 1.5 H 2\">cc</i>"
        "<i class=m4 title=\"w 100 H 0\">dd</i><i class=l4 title=\"w 0 H 0\">ee</i>ff<i class=l1 title=\"w "
        "0.7\">gg</i>"));
    EXPECT(!has("whole text"));
    // One weight too few: which token has which is not known, so none is tinted.
    members = "\"ev\":\"completion\",\"step\":1,\"group\":0,\"text\":\"whole "
              "text\",\"pieces\":[\"aa\",\"bb\"],\"weight\":[1]";
    run = run_folder("few", "rollouts.jsonl", &members, 1);
    run_folder("few", "run.jsonl", NULL, 0);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 1}));
    EXPECT(has(">whole text</p>") && !has(">aa<"));
}

TEST(a_long_completion_says_how_much_is_not_shown) {
    const char *members =
        "\"ev\":\"completion\",\"step\":1,\"group\":0,\"text\":\"x\",\"tokens\":40,\"pieces\":[\"aa\",\"bb\"],"
        "\"weight\":[1,1]";
    const char *run = run_folder("front", "rollouts.jsonl", &members, 1);
    run_folder("front", "run.jsonl", NULL, 0);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 1}));
    EXPECT(has(">bb</i><span class=note> [38 more tokens]</span></p>"));
}

TEST(a_completion_without_step_or_group_is_refused) {
    const char *members = "\"ev\":\"completion\",\"step\":1,\"text\":\"x\"";
    const char *run = run_folder("nogroup", "rollouts.jsonl", &members, 1);
    run_folder("nogroup", "run.jsonl", NULL, 0);
    EXPECT(!report((ReportOptions){.runs = &run, .n_runs = 1, .max_groups = 1}));
    EXPECT_STR(refused, "E-CF-02");
}

TEST(runs_of_one_kind_share_their_charts) {
    const char *runs[3];
    for (int r = 0; r < 3; r++) {
        char name[20];
        int n = 0;
        for (int step = 1; step <= 50; step++) {
            snprintf(lines[n++], LINE, "\"ev\":\"step\",\"step\":%d,\"loss\":%g,\"grad_norm\":1", step, 1. / step);
            if (r < 2)
                snprintf(lines[n++], LINE,
                         "\"ev\":\"rollout\",\"step\":%d,\"reward\":1,\"novel\":{\"n\":3,\"share\":0.5}", step);
            if (step % 10) continue;
            snprintf(
                lines[n++], LINE,
                r == 2 ? "\"ev\":\"eval\",\"step\":%d,\"loss\":1.5"
                       : "\"ev\":\"eval\",\"step\":%d,\"greedy\":{\"T\":0,\"right\":0.5},\"sampled\":{\"right\":0.25}",
                step);
        }
        snprintf(name, sizeof name, "curve%d", r);
        runs[r] = run_folder(name, "run.jsonl", line_list(), n);
    }
    EXPECT(report((ReportOptions){.runs = runs, .n_runs = 3}));
    EXPECT(has("<h3>Reinforcement</h3>") && has("<h3>Supervised</h3>"));
    // Two with rewards: loss, gradient norm, reward, evaluation, and the number that nobody knows. One without: loss,
    // evaluation loss, gradient norm.
    EXPECT_INT(count("<figure>"), 8);
    EXPECT_INT(count("<span>training loss</span>"), 2);
    EXPECT_INT(count("<span>reward</span>"), 1);
    EXPECT_INT(count("<span>rollout: novel.share</span>"), 1);
    EXPECT(!has("novel.n<") && !has("greedy.T"));
    // A thin and a thick line for 50 points, one line with 5 dots for 5; greedy and sampled of two runs share a chart.
    EXPECT_INT(count("class=\"raw\""), 4 * 2 + 2);
    EXPECT_INT(count("<circle "), 5 * 4 + 5);
    EXPECT_INT(count("class=\"dash\""), 2);
    EXPECT(report((ReportOptions){.runs = runs + 2, .n_runs = 1}));
    EXPECT(!has("Reinforcement") && has("Supervised"));
}

TEST(a_curve_keeps_its_peaks_however_long_it_is) {
    Log l;
    Err e = {0};
    const char *run = run_folder("long", "run.jsonl", NULL, 0);
    char path[700], members[200];
    snprintf(path, sizeof path, "%s/run.jsonl", run);
    EXPECT(log_open(&l, path, -1, &e));
    for (int step = 0; step < 5000; step++) {
        snprintf(members, sizeof members, "\"ev\":\"step\",\"step\":%d,\"loss\":%d", step, step == 3333 ? 100 : 0);
        EXPECT(log_write(&l, members, &e));
    }
    log_close(&l);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1}));
    // The peak is the top of the chart: y = 9, right of the axis by 3333 of 4999.
    EXPECT(has("L235.4 9.0L") && strlen(page) < 40000);
}

TEST(a_number_that_hardly_moves_is_drawn_flat) {
    for (int k = 0; k < 2; k++)
        snprintf(lines[k], LINE, "\"ev\":\"step\",\"step\":%d,\"loss\":0,\"entropy\":%g", k, 11.9180 + 0.0001 * k);
    const char *run = run_folder("flat", "run.jsonl", line_list(), 2);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1}));
    EXPECT(has(">11</text>") && has(">12</text>") && !has(">11.918")); // not its rounding on the whole axis
    EXPECT(has(">0</text>") && has(">1</text>") && !has(">-"));        // all 0: from 0 to 1
}

TEST(a_torn_last_line_is_no_fault_and_a_damaged_one_is) {
    for (int k = 0; k < 3; k++) snprintf(lines[k], LINE, "\"ev\":\"step\",\"step\":%d,\"loss\":%d", k, k);
    const char *run = run_folder("torn", "run.jsonl", line_list(), 3);
    char path[700];
    snprintf(path, sizeof path, "%s/run.jsonl", run);
    FILE *f = fopen(path, "ab");
    fputs("{\"crc\":\"00000000\",\"seq\":3,\"ev\":\"st", f), fclose(f);
    EXPECT(report((ReportOptions){.runs = &run, .n_runs = 1}));
    EXPECT(has("<span>training loss</span>"));
    f = fopen(path, "r+b");
    fseek(f, 30, SEEK_SET), fputc('!', f), fclose(f);
    EXPECT(!report((ReportOptions){.runs = &run, .n_runs = 1}));
    EXPECT_STR(refused, "E-CK-02");
}

#define CELL(value, low, high)                                                                                         \
    "{\"value\":" #value ",\"low\":" #low ",\"high\":" #high ",\"sd\":0.02,\"n\":9,\"by_seed\":[" #value ",null]}"
static const char
    table
        [] = "{\"format\":1,\"title\":\"Arms & <b>legs</b>\",\"seeds\":2,\"level\":0.9,\"arms\":["
             "{\"name\":\"none\",\"section\":null,\"note\":null,\"seeds\":0,\"tasks\":{\"tool\":" CELL(null, null, null) ",\"phase\":" CELL(null, null, null) "},\"mean\":" CELL(
                 null, null,
                 null) "},"
                       "{\"name\":\"first\",\"section\":\"stages\",\"note\":null,\"seeds\":2,\"tasks\":{"
                       "\"tool\":" CELL(0.5, 0.4, 0.6) ",\"phase\":" CELL(0.25, null, null) "},\"mean\":" CELL(0.375, 0.3, 0.45) ",\"iou\":" CELL(
                           null,
                           null, null) ",\"tokens\":" CELL(41.6, 40,
                                                           44) "},"
                                                               "{\"name\":\"second\",\"section\":\"stages\",\"note\":"
                                                               "\"says "
                                                               "<i>\",\"seeds\":1,\"tasks\":{\"tool\":" CELL(0.8, 0.7, 1.0) "},\"mean\":" CELL(
                                                                   0.8, 0.7,
                                                                   0.9) "}],\"differences\":["
                                                                        "{\"name\":\"q1\",\"a\":\"second\",\"b\":"
                                                                        "\"first\",\"metric\":\"accuracy\","
                                                                        "\"excludes_0\":true,\"mean\":" CELL(
                                                                            0.3,
                                                                            0.1, 0.5) ",\"tasks\":{"
                                                                                      "\"tool\":" CELL(0.3, 0.2, 0.4) ",\"phase\":" CELL(
                                                                                          -0.1, -0.2,
                                                                                          0.1) "}},"
                                                                                               "{\"name\":"
                                                                                               "\"q2\",\"a\":"
                                                                                               "\"x\",\"b\":"
                                                                                               "\"y\","
                                                                                               "\"metric\":"
                                                                                               "\"iou\","
                                                                                               "\"excludes_0\":"
                                                                                               "false,"
                                                                                               "\"mean\":" CELL(
                                                                                                   -0.1, -0.2,
                                                                                                   0.05) "},"
                                                                                                         "{\"nam"
                                                                                                         "e\":"
                                                                                                         "\"q3\""
                                                                                                         ",\"a\""
                                                                                                         ":\"x\""
                                                                                                         ",\"b\""
                                                                                                         ":\"y\""
                                                                                                         ",\"met"
                                                                                                         "ric\":"
                                                                                                         "\"toke"
                                                                                                         "ns\","
                                                                                                         "\"excl"
                                                                                                         "udes_"
                                                                                                         "0\":"
                                                                                                         "true,"
                                                                                                         "\"mean"
                                                                                                         "\""
                                                                                                         ":" CELL(
                                                                                                             7,
                                                                                                             5,
                                                                                                             10) "},"
                                                                                                                 "{\"na"
                                                                                                                 "me\":"
                                                                                                                 "\"q4"
                                                                                                                 "\","
                                                                                                                 "\"a\""
                                                                                                                 ":\"x"
                                                                                                                 "\","
                                                                                                                 "\"b\""
                                                                                                                 ":\"no"
                                                                                                                 "ne\","
                                                                                                                 "\"met"
                                                                                                                 "ric\""
                                                                                                                 ":\"ac"
                                                                                                                 "curac"
                                                                                                                 "y\","
                                                                                                                 "\"exc"
                                                                                                                 "ludes"
                                                                                                                 "_0\":"
                                                                                                                 "null,"
                                                                                                                 "\"mea"
                                                                                                                 "n\""
                                                                                                                 ":" CELL(
                                                                                                                     null,
                                                                                                                     null,
                                                                                                                     null) "}]}";
TEST(the_ablation_table_is_drawn_as_it_is_written) {
    const char *path = tmp_path("table.json");
    put_file(path, table, sizeof table - 1);
    EXPECT(report((ReportOptions){.tables = &path, .n_tables = 1}));
    EXPECT(has("<h2>Arms &amp; &lt;b&gt;legs&lt;/b&gt;</h2>") && has("says &lt;i&gt;"));
    EXPECT(
        has("<th class=n>tool<th class=n>phase<th class=n>mean<th class=n>tokens</thead>")); // no IoU: nobody has one
    EXPECT(has("<td class=n title=\"40.0 to 60.0, deviation 2.0; seeds: 50.0\">50.0<"));
    // The column runs from .4 to 1 over 60 pixels: the bar of the first arm is its first third, its mark in the middle of it.
    EXPECT(has("<line class=iv x1=3.0 x2=23.0 y1=5 y2=5 /><rect class=mark x=12.0 "));
    EXPECT(has("<line class=iv x1=33.0 x2=63.0 y1=5 y2=5 /><rect class=mark x=42.0 "));
    EXPECT_INT(count("<line class=iv "), 5); // an estimate without an interval has no bar
    EXPECT(has(">41.6<svg") && !has("4160"));
    EXPECT_INT(count("<td class=note colspan=4>not run</tr>"), 1);
    EXPECT_INT(count("<th scope=rowgroup colspan=6>stages</tr>"), 1);
    // Differences on an axis from -20 to 60 points over 272 pixels: 0 at 82, the first from 116 to 252 with its dot at 184.
    EXPECT(has("d=\"M116.0 11H252.0M116.0 7v8M252.0 7v8\"/><circle class=solid cx=184.0 cy=11 r=4 /></svg><td>yes"));
    EXPECT(has("tool +30.0*, phase -10.0</tr>") && has("<circle class=hollow cx=48.0 ") && has("<th>90 % interval"));
    EXPECT_INT(count("<table class=differences>"), 2); // tokens have an axis of their own
    EXPECT(has("<th class=n>tokens<th>90 %") && has("<td class=n>+7.0<td>"));
    EXPECT_INT(count("<circle class=seed "), 3);
    EXPECT_INT(count("<td class=n>-<td class=note>not run"), 1);
    put_file(path, "{\"arms\":[]}", 11);
    EXPECT(!report((ReportOptions){.tables = &path, .n_tables = 1}));
    EXPECT_STR(refused, "E-CF-02");
    put_file(path, "{\"format\":1,\"arms\":3}", 21);
    EXPECT(!report((ReportOptions){.tables = &path, .n_tables = 1}));
    EXPECT_STR(refused, "E-CF-02");
}

TEST(a_picture_is_in_the_page_once_however_many_cards_show_it) {
    static uint8_t rgb[40 * 80 * 3];
    Err e = {0};
    Text t = {0};
    for (size_t k = 0; k < sizeof rgb; k++) rgb[k] = (uint8_t)(k * 37);
    EXPECT(image_write_png(tmp_path("a.png"), rgb, 80, 40, &e) && image_write_png(tmp_path("b.png"), rgb, 40, 80, &e));
    for (int k = 0; k < 7; k++)
        text_addf(
            &t,
            "{\"id\":\"r%d\",\"messages\":[{\"role\":\"user\",\"content\":\"Where is the hook in "
            "<image>?\"}],\"images\":"
            "[\"%s.png\"],\"task\":\"tool_box\",\"level\":1,\"slot\":\"hook\",\"boxes\":[{\"label\":\"hook\",\"box\":"
            "[10,20,50,40]}],\"size\":[80,40],\"response\":\"no\"}\n",
            k, (const char *[]){"a", "b", "a", "gone", "a", "gone", "b"}[k]);
    const char *path = tmp_path("predictions.jsonl");
    put_file(path, t.p, t.len);
    text_free(&t);
    EXPECT(report((ReportOptions){.predictions = path}));
    EXPECT_INT(count("<article"), 7);
    EXPECT_INT(count("<image "), 2);
    EXPECT_INT(count("href=\"data:image/"), 2);
    EXPECT_INT(count("<use href=\"#p0\"/>"), 3);
    EXPECT_INT(count("<use href=\"#p1\"/>"), 2);
    EXPECT_INT(count("No picture: "), 2);
    // 80 x 40 is shown as 64 x 32; the box with it.
    EXPECT(has("viewBox=\"0 0 64 32\"") && has("<rect class=truth x=8.0 y=16.0 width=32.0 height=16.0>"));
    EXPECT(place("<image id=p0") < place("<use href=\"#p0\"/>"));
}
