// test_sft.c - surgr1 sft as a person meets it: what is shown before step 0, and what is refused for doing nothing.
//
// What it is not: the numbers of training (test_train.c), resume (test_resume.c) or the guards (test_guards.c).
#define _GNU_SOURCE
#include "trainer.h"

static const char *words_only(const char *name, const char *answer) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", work, name);
    Text t = {0};
    text_addf(&t, "{\"query\":\"Was ist das?\",\"response\":\"%s\"}\n", answer);
    spill(path, t.p, t.len), text_free(&t);
    return path;
}
#define DRY "sft --model " MODEL " --image-root " FIXTURES " --dry-run --data %s %s"

TEST(a_character_of_several_tokens_is_shown_whole) {
    const char *answer = "\xE6\x89\x8B\xE6\x9C\xAF \xF0\x9F\xA9\xBA \xC3\x9C"
                         "bung"; // two signs, a stethoscope, U umlaut
    char line[80];
    snprintf(line, sizeof line, ">>%s<|im_end|><<", answer);
    EXPECT_EXIT(run(DRY, words_only("signs.jsonl", answer), ""), 0);
    EXPECT_TOLD(line);
    EXPECT_EXIT(run(DRY, data_file(), "--in-order"), 0);
    EXPECT_TOLD("<|vision_start|>[6 picture tokens]<|vision_end|>What is this? (0)<|im_end|>");
    EXPECT_TOLD(">>A liver with a grasper.<|im_end|><<");
}
