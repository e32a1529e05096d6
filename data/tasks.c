// tasks.c - the tasks of both papers, and how their questions and answers are worded.
//
// What it is:  one table of tasks (Surg-R1's three levels, Surgery-R1's visual question localised answering).
// What it is not: where a label comes from (scenes.c, import.c) or how an answer is scored (surgery/).
// Read before: surgr1.h, section data/tasks.c.  Read next: scenes.c.
// Source: Surg-R1 (arXiv 2603.12430), table of the three-level hierarchy; Surgery-R1 (arXiv 2506.19469).
#include "../surgr1.h"

static const TaskInfo tasks[TASKS] = {
    [TASK_TOOL] = {"tool", 1, ANSWER_LIST, "which instruments are visible"},
    [TASK_TISSUE] = {"tissue", 1, ANSWER_LIST, "which tissues are visible"},
    [TASK_TOOL_BOX] = {"tool_box", 1, ANSWER_BOX, "where one instrument is"},
    [TASK_TOOL_BOXES] = {"tool_boxes", 1, ANSWER_BOXES, "where all instruments are"},
    [TASK_TISSUE_BOX] = {"tissue_box", 1, ANSWER_BOX, "where a tissue is"},
    [TASK_GRID] = {"grid", 1, ANSWER_WORD, "in which ninth of the picture an instrument's tip is"},
    [TASK_CVS1] = {"cvs1", 1, ANSWER_YESNO, "critical view of safety, two structures"},
    [TASK_CVS2] = {"cvs2", 1, ANSWER_YESNO, "critical view of safety, hepatocystic triangle"},
    [TASK_CVS3] = {"cvs3", 1, ANSWER_YESNO, "critical view of safety, cystic plate"},
    [TASK_ACTION] = {"action", 2, ANSWER_WORD, "what is being done"},
    [TASK_MOTION] = {"motion", 2, ANSWER_WORD, "how the laparoscope moves"},
    [TASK_TRIPLET] = {"triplet", 2, ANSWER_TRIPLETS, "instrument, verb, target"},
    [TASK_COUNT] = {"count", 3, ANSWER_NUMBER, "how many instruments are visible"},
    [TASK_STEP] = {"step", 3, ANSWER_WORD, "which step"},
    [TASK_PHASE] = {"phase", 3, ANSWER_WORD, "which phase"},
    [TASK_CVS] = {"cvs", 3, ANSWER_YESNO, "whether the critical view of safety is achieved"},
    [TASK_VQA] = {"vqa", 0, ANSWER_WORD, "a question answered by a label"},
    [TASK_VQLA] = {"vqla", 0, ANSWER_VQLA, "a question answered by a label and a box"},
};

const TaskInfo *task_info(enum Task t) { return &tasks[t]; }

int task_of(const char *name) {
    for (int t = 0; t < TASKS; t++)
        if (!strcmp(tasks[t].name, name)) return t;
    return -1;
}
