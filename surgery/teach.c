// teach.c - the built-in teacher of drawn scenes: three levels of reasoning, written from the truth of the frame.
//
// What it is:  sentences about what a scene's truth says is visible (data/scenes.c), in varied wording, up to the level of
//              the task, ending in the record's label. The choice of words is a pure function of seed and id.
// What it is not: a model. It sees no picture, so its texts are marked "teacher":"scene-graph"; and it says nothing that
//              the truth does not list: no colours, no tissue that is hidden, no numbers of a box but in the answer.
// Read before: surgr1.h, section surgery/teach.c; data/scenes.c.  Read next: commands/synth.c.
#include "../surgr1.h"

typedef struct Lesson {
    const TaskItem *item;
    const Json *truth, *tools, *tissues, *objects;
    uint64_t seed;
    uint32_t picks;
    const Json *wrong;  // the instrument that is mistaken, as `mistake`; NULL: none
    int mistake;        // number of a triplet
    int misread;        // the criterion, 1 to 3, that is taken for its opposite; 0: none
    bool overcalled[3]; // criteria that are unmet and taken for met
    Text *out;
} Lesson;

static const char *text_of(const Json *object, const char *name) {
    const Json *v = json_get(object, name);
    return v && v->type == JSON_STRING ? v->str : "";
}

static const Json *first(const Json *list) { return list ? list->child : NULL; }

static const char *kept(const char *before, const char *name) { // with spaces for the underscores of label sets
    static _Thread_local char ring[16][80];
    static _Thread_local int next;
    char *to = ring[next++ % 16];
    snprintf(to, 80, "%s%s", before, name);
    for (char *p = to; *p; p++)
        if (*p == '_') *p = ' ';
    return to;
}
static const char *named(const char *name) { return kept("", name); }

static bool ends(const char *text, const char *with) {
    size_t n = strlen(text), m = strlen(with);
    return n >= m && !strcmp(text + n - m, with);
}
static const char *verb_of(const Lesson *l, const Json *tool) {
    return tool == l->wrong && tool ? cholect50_verbs[cholect50_triplets[l->mistake][1]] : text_of(tool, "verb");
}
static const char *target_of(const Lesson *l, const Json *tool) {
    return tool == l->wrong && tool ? cholect50_targets[cholect50_triplets[l->mistake][2]] : text_of(tool, "target");
}

// An instrument as a sentence has it, so that the verb behind it is singular.
static const char *one(const char *tool) {
    return kept(ends(tool, "scissors") || ends(tool, "forceps") ? "pair of " : "", tool);
}
static const char *a_or_an(const char *word) { return *word && strchr("aeiou", *word) ? "an" : "a"; }

// One of several ways to say it; every call draws anew.
#define SAY(l, ...)                                                                                                    \
    say(l, (const char *const[]){__VA_ARGS__}, (int)(sizeof(const char *[]){__VA_ARGS__} / sizeof(char *)))
static const char *say(Lesson *l, const char *const *ways, int n) {
    return ways[task_pick(l->seed, l->item->id, 1000 + l->picks++, n)];
}

static const Json *seen(const Lesson *l, const char *name) {
    for (const Json *v = first(l->tissues); v; v = v->next)
        if (!strcmp(text_of(v, "name"), name)) return v;
    for (const Json *v = first(l->objects); v; v = v->next)
        if (!strcmp(text_of(v, "name"), name)) return v;
    return NULL;
}

static const Json *tool_of(const Lesson *l, const char *name) {
    for (const Json *v = first(l->tools); v; v = v->next)
        if (!strcmp(text_of(v, "name"), name)) return v;
    return NULL;
}

// Which ninth the middle of a box is in. false: the truth has no box there.
static bool corners(const Json *v, double c[4]) {
    const Json *box = json_get(v, "box"), *x = first(box);
    if (!box || box->count != 4) return false;
    for (int i = 0; i < 4; i++, x = x->next) c[i] = x->number;
    return true;
}

static const char *cell_of(const Lesson *l, const Json *v) {
    double c[4];
    if (!corners(v, c)) return "center";
    return task_grid_cell((c[0] + c[2]) / 2, (c[1] + c[3]) / 2, (double)l->item->width, (double)l->item->height);
}

// ---------------------------------------------------------------------------------------------------------- level 1
static void tell_tools(Lesson *l) {
    int n = 0;
    for (const Json *t = first(l->tools); t; t = t->next, n++) {
        const char *tool = one(text_of(t, "name")), *a = a_or_an(tool), *cell = text_of(t, "cell");
        const Json *visible = json_get(t, "visible");
        switch (task_pick(l->seed, l->item->id, 1000 + l->picks++, 4)) {
        case 0: text_addf(l->out, " One sees %s %s with its tip in the %s", a, tool, cell); break;
        case 1: text_addf(l->out, " The tip of %s %s lies in the %s", a, tool, cell); break;
        case 2: text_addf(l->out, " In the %s is the working end of %s %s", cell, a, tool); break;
        default:
            text_addf(l->out, " %s, %s %s, reaches into the %s of the picture",
                      n ? "Another instrument" : "One instrument", a, tool, cell);
        }
        if (visible && visible->number < .75)
            text_addf(l->out, "%s", SAY(l, ", partly covered", ", not all of it free to see"));
        text_addf(l->out, ".");
    }
    if (!n) text_addf(l->out, "%s", SAY(l, " No instrument is in view.", " The field shows no instrument at all."));
}

enum { MOST_TISSUES = 5 };

// The largest tissues; all of them when they are the answer.
static void tell_tissues(Lesson *l, bool all) {
    const Json *chosen[40];
    int n = 0;
    for (const Json *v = first(l->tissues); v && n < 40; v = v->next) chosen[n++] = v;
    for (int i = 1; i < n && !all; i++) // by share, falling
        for (int j = i; j > 0; j--) {
            const Json *a = json_get(chosen[j - 1], "share"), *b = json_get(chosen[j], "share");
            if (!(a && b && a->number < b->number)) break;
            const Json *swap = chosen[j];
            chosen[j] = chosen[j - 1], chosen[j - 1] = swap;
        }
    if (!all && n > MOST_TISSUES) n = MOST_TISSUES;
    if (!n) return;
    static const char *const ways[][2] = {
        {"lies about", "about"}, {"has its middle in", "in"}, {"shows around", "around"}};
    int way = task_pick(l->seed, l->item->id, 1000 + l->picks++, 3);
    text_addf(l->out, "%s", SAY(l, " Of the anatomy, ", " Among the tissues, ", " As to tissue, ", " Around this, "));
    for (int i = 0; i < n; i++)
        text_addf(l->out, "%sthe %s %s the %s",
                  !i          ? ""
                  : i < n - 1 ? ", "
                              : " and ",
                  named(text_of(chosen[i], "name")), ways[way][i > 0], cell_of(l, chosen[i]));
    text_addf(l->out, ".");
}

static void tell_objects(Lesson *l) {
    for (const Json *v = first(l->objects); v; v = v->next) {
        const char *name = named(text_of(v, "name"));
        bool mass = !strcmp(name, "fluid") || !strcmp(name, "thread");
        text_addf(l->out, " %s%s%s%s %s the %s.",
                  mass ? SAY(l, "Some ", "A little ") : SAY(l, "There is also ", "One also sees "),
                  mass ? "" : a_or_an(name), mass ? "" : " ", name, mass ? SAY(l, "is seen in", "lies in") : "in",
                  cell_of(l, v));
    }
    const Json *smoke = json_get(l->truth, "smoke");
    if (smoke && smoke->number > 0)
        text_addf(l->out, "%s", SAY(l, " Smoke hangs over a part of the field.", " Some smoke drifts in the view."));
    else
        text_addf(l->out, "%s",
                  SAY(l, " The view is free of smoke.", " No smoke is in the way.", " The field is clear."));
}

static bool criterion(const Lesson *l, int k) {
    static const char *const names[] = {"c1", "c2", "c3", "achieved"};
    const Json *v = json_get(json_get(l->truth, "cvs"), names[k]);
    bool any = l->overcalled[0] || l->overcalled[1] || l->overcalled[2];
    if (k == 3 && any) return criterion(l, 0) && criterion(l, 1) && criterion(l, 2);
    return (v && v->type == JSON_TRUE) != (l->misread == k + 1) || (k < 3 && l->overcalled[k]);
}

static void tell_criterion(Lesson *l, int k) {
    bool yes = criterion(l, k), duct = seen(l, "cystic_duct"), artery = seen(l, "cystic_artery");
    if (!seen(l, "gallbladder")) {
        text_addf(l->out, "%s",
                  SAY(l, " The gallbladder itself cannot be made out, so this cannot be confirmed.",
                      " Without a view of the gallbladder this stays open, so it is not met."));
        return;
    }
    switch (k) {
    case 0:
        if (yes)
            text_addf(
                l->out, "%s",
                SAY(l,
                    " Two separate tubes, the cystic duct and the cystic artery, run to the gallbladder, and nothing "
                    "else joins it.",
                    " The cystic duct and the cystic artery can be told apart, and they alone enter the gallbladder."));
        else if (seen(l, "cystic_pedicle"))
            text_addf(l->out, "%s",
                      SAY(l, " A bundle of tissue, the cystic pedicle, still holds duct and artery together.",
                          " What enters the gallbladder is still one bundle, the cystic pedicle."));
        else if (duct != artery)
            text_addf(l->out, " Only the %s can be seen at the gallbladder; a second tube cannot be made out.",
                      duct ? "cystic duct" : "cystic artery");
        else
            text_addf(l->out, "%s",
                      SAY(l, " Two separate tubes at the gallbladder cannot be made out.",
                          " It is not shown what enters the gallbladder."));
        break;
    case 1:
        if (yes)
            text_addf(l->out, "%s",
                      SAY(l, " The triangle beside the gallbladder is open and free of covering tissue.",
                          " Between the tubes and the liver the triangle is cleared, and one sees through it."));
        else
            text_addf(l->out, " The triangle beside the gallbladder is not clear: %s.",
                      seen(l, "fat")          ? "fat covers it"
                      : seen(l, "peritoneum") ? "peritoneum covers it"
                      : seen(l, "adhesion")   ? "an adhesion lies over it"
                                              : "tissue or an instrument is in the way");
        break;
    default:
        text_addf(l->out, "%s",
                  yes ? SAY(l, " The lower gallbladder stands off the liver, and the cystic plate shows behind it.",
                            " Behind the lower gallbladder the bare cystic plate is visible, with a gap to the liver.")
                      : SAY(l, " The lower gallbladder still lies against the liver, with no gap in between.",
                            " No gap opens between the lower gallbladder and the liver."));
    }
}

static void level_1(Lesson *l) {
    const TaskItem *t = l->item;
    enum Task task = t->task;
    const char *slot = t->slot ? named(t->slot) : "";
    if (task == TASK_TISSUE || task == TASK_TISSUE_BOX) tell_tissues(l, task == TASK_TISSUE), tell_tools(l);
    else tell_tools(l), tell_tissues(l, false);
    tell_objects(l);
    if (task == TASK_CVS1 || task == TASK_CVS2 || task == TASK_CVS3) tell_criterion(l, task - TASK_CVS1);
    if (task == TASK_CVS)
        for (int k = 0; k < 3; k++) tell_criterion(l, k);
    if (task == TASK_TOOL)
        text_addf(
            l->out, " %s %s.",
            SAY(l, "So the instruments in view are:", "That makes, as instruments,", "The instruments seen are thus"),
            t->answer);
    if (task == TASK_TISSUE)
        text_addf(
            l->out, " %s",
            SAY(l, "These are all the tissues that can be told apart.", "Nothing else of the anatomy is in view."));
    if (task == TASK_GRID)
        text_addf(l->out, " %s %s %s %s.",
                  SAY(l, "What counts is the tip of the", "The question is about the tip of the"), slot,
                  SAY(l, "and that falls into the", "which lies in the"), t->answer);
    if ((task == TASK_TOOL_BOX || task == TASK_TISSUE_BOX) && t->n_boxes) {
        const Box *b = &t->boxes[0];
        double w = (double)t->width, h = (double)t->height;
        const char *from = task_grid_cell(b->x1, b->y1, w, h), *to = task_grid_cell(b->x2 - 1, b->y2 - 1, w, h);
        text_addf(l->out, " %s %s", SAY(l, "The box holds all that can be seen of the", "What can be seen of the"),
                  slot);
        if (!strcmp(from, to)) text_addf(l->out, ", %s %s.", SAY(l, "within the", "all of it in the"), to);
        else text_addf(l->out, ", %s %s to the %s.", SAY(l, "from the", "reaching from the"), from, to);
    }
    if (task == TASK_TOOL_BOXES)
        text_addf(l->out, " %s",
                  t->n_boxes ? SAY(l, "Each of them gets the box of what can be seen of it.",
                                   "One box for each follows its visible outline.")
                             : SAY(l, "There is nothing to mark.", "So no box is needed."));
}

// ---------------------------------------------------------------------------------------------------------- level 2
static void tell_act(Lesson *l, const Json *t) {
    const char *tool = one(text_of(t, "name")), *verb = verb_of(l, t), *target = named(target_of(l, t));
    static const struct {
        const char *verb, *way[2];
    } acts[] = {
        {"grasp", {"holds the %s between its closed jaws", "has the %s in its jaws without moving it far"}},
        {"retract",
         {"pulls the %s aside and keeps it under tension", "holds the %s away so that the field is exposed"}},
        {"dissect", {"works in the layer at the %s to free it", "opens the plane at the %s with its tip"}},
        {"coagulate", {"brings current to the %s", "touches the %s to stop bleeding"}},
        {"clip", {"is closed round the %s to place a clip", "sets a clip on the %s"}},
        {"cut", {"divides the %s", "cuts into the %s"}},
        {"aspirate", {"sucks up the %s", "has its tip in the %s and draws it off"}},
        {"irrigate", {"rinses the %s", "sends water over the %s"}},
        {"pack", {"moves the %s towards the bag", "puts the %s into the bag"}},
    };
    text_addf(l->out, " The %s ", tool);
    if (!strcmp(verb, "null_verb")) {
        text_addf(l->out, "%s", SAY(l, "is idle: it touches nothing.", "waits in the view without contact."));
        return;
    }
    for (size_t k = 0; k < sizeof acts / sizeof *acts; k++)
        if (!strcmp(acts[k].verb, verb)) {
            const char *way = say(l, acts[k].way, 2), *at = strstr(way, "%s");
            text_addf(l->out, "%.*s%s%s.", (int)(at - way), way, target, at + 2);
            return;
        }
    text_addf(l->out, "does this: %s %s.", named(verb), target);
}

static void tell_suturing(Lesson *l) {
    const char *a = text_of(l->truth, "action");
    bool needle = seen(l, "suture_needle"), thread = seen(l, "thread");
    text_addf(l->out, "%s",
              needle ? SAY(l, " The needle is in view,", " A needle can be seen,")
                     : SAY(l, " No needle is in view,", " A needle cannot be seen,"));
    text_addf(l->out, " %s.",
              thread ? SAY(l, "and so is the thread", "with its thread in the field")
                     : SAY(l, "nor is there thread", "and no thread either"));
    text_addf(l->out, " %s %s.",
              SAY(l, "The way instruments, needle and thread stand to each other speaks for:",
                  "Their positions fit this action:"),
              a);
}

static void level_2(Lesson *l) {
    if (json_get(l->truth, "action")) tell_suturing(l);
    else if (!first(l->tools))
        text_addf(
            l->out, "%s",
            SAY(l, " Nothing is being done, as no instrument is there.", " Without an instrument there is no action."));
    else {
        for (const Json *t = first(l->tools); t; t = t->next) tell_act(l, t);
        if (l->item->task == TASK_TRIPLET)
            text_addf(l->out, " %s %s.",
                      SAY(l, "As instrument, verb and target:", "In short:", "Put as instrument, verb, target:"),
                      l->item->answer);
    }
}

// ---------------------------------------------------------------------------------------------------------- level 3
// Instruments by kind, each once, as a list of them names them.
static int kinds(const Lesson *l, const char *names[PROTOCOL_MOST_MOVES]) {
    int n = 0;
    for (const Json *v = first(l->tools); v && n < PROTOCOL_MOST_MOVES; v = v->next) {
        bool again = false;
        for (int i = 0; i < n; i++) again = again || !strcmp(names[i], text_of(v, "name"));
        if (!again) names[n++] = text_of(v, "name");
    }
    return n;
}
static int walk(const Lesson *l, ProtocolMove moves[PROTOCOL_MOST_MOVES]) {
    const char *names[PROTOCOL_MOST_MOVES];
    return protocol_walk(names, kinds(l, names), (bool[3]){criterion(l, 0), criterion(l, 1), criterion(l, 2)}, moves);
}

static void tell_phase(Lesson *l, const char *phase) {
    bool bag = seen(l, "specimen_bag"), sac = seen(l, "gallbladder"), clip = seen(l, "clip");
    bool tubes = seen(l, "cystic_duct") || seen(l, "cystic_artery") || seen(l, "cystic_pedicle");
    const char *why = bag && sac ? "the gallbladder and the bag are both in view"
                      : bag      ? "the bag is there and the gallbladder has gone into it"
                      : !sac     ? "the gallbladder is no longer in the field"
                      : !strcmp(phase, "GallbladderDissection")
                          ? "clips are placed and the gallbladder comes off its bed"
                      : clip                  ? "clips are on, while the gallbladder still lies in its bed"
                      : tool_of(l, "clipper") ? "the clipper is at work"
                      : tubes                 ? "the structures at the neck are being freed and nothing is clipped yet"
                                              : "the gallbladder is there, with nothing opened at its neck yet";
    text_addf(l->out, " %s %s: %s %s.", SAY(l, "What decides is that", "The telling point is that", "It matters that"),
              why, SAY(l, "this is the phase", "that belongs to", "so the phase is"), phase);
    if (*text_of(l->truth, "also_plausible"))
        text_addf(l->out, " %s would also be possible, %s.", text_of(l->truth, "also_plausible"),
                  SAY(l, "but the picture speaks less for it", "with less in its favor"));
}

static void level_3(Lesson *l) {
    const TaskItem *t = l->item;
    int n = 0, i = 0;
    switch (t->task) {
    case TASK_COUNT:
        for (const Json *v = first(l->tools); v; v = v->next) n++;
        if (!n) {
            text_addf(
                l->out, "%s",
                SAY(l, " There is no instrument to count, so the number is 0.", " With nothing to count it is 0."));
            break;
        }
        text_addf(l->out, "%s", SAY(l, " Counting the instruments:", " Going through the instruments one by one:"));
        for (const Json *v = first(l->tools); v; v = v->next, i++)
            text_addf(l->out, "%s%s", !i ? " " : i < n - 1 ? ", " : " and ", named(text_of(v, "name")));
        text_addf(l->out, ". %s %s.", SAY(l, "In all that makes", "The sum is", "So the number is"), t->answer);
        break;
    case TASK_PHASE: tell_phase(l, t->answer); break;
    case TASK_STEP:
        for (const Json *v = first(l->tools); v; v = v->next) n++;
        tell_phase(l, text_of(l->truth, "phase"));
        text_addf(l->out, " With %s in view%s, %s: %s.",
                  n == 0   ? "no instrument"
                  : n == 1 ? "one instrument"
                           : "several instruments",
                  !json_get(l->truth, "cvs") ? ""
                  : criterion(l, 3)          ? " and the critical view achieved"
                                             : " and the critical view not achieved",
                  SAY(l, "the step is", "this step fits"), t->answer);
        break;
    case TASK_CVS:
        text_addf(l->out, " Two structures: %s. Triangle: %s. Plate: %s.", criterion(l, 0) ? "met" : "not met",
                  criterion(l, 1) ? "met" : "not met", criterion(l, 2) ? "met" : "not met");
        text_addf(l->out, "%s",
                  criterion(l, 3) ? SAY(l, " All three are met, so the critical view is achieved.",
                                        " With all three met the critical view of safety is there.")
                                  : SAY(l, " Not all three are met, so the critical view is not achieved.",
                                        " One missing criterion is enough: the view is not achieved."));
        break;
    case TASK_PROTOCOL: {
        ProtocolMove moves[PROTOCOL_MOST_MOVES];
        n = walk(l, moves);
        text_addf(l->out, "%s",
                  SAY(l, " The protocol begins at retract.", " From retract one goes through the protocol."));
        for (; i < n; i++)
            text_addf(l->out, " %s %s%s%s leads to %s.", *moves[i].value ? "Criterion" : "The",
                      *moves[i].value ? moves[i].fact : named(moves[i].fact), *moves[i].value ? ": " : "",
                      moves[i].value, moves[i].action);
        text_addf(l->out, " %s %s.", SAY(l, "So what comes next is", "That is the next action:"), t->answer);
        break;
    }
    default: break;
    }
}

// ----------------------------------------------------------------------------------------------------------- brief
// A small model answers best what it was asked before: so a brief thought about a whole scene asks itself the questions of
// single facts, in their own words, and answers them.
static bool rests_on_criteria(enum Task t) {
    return t == TASK_CVS || t == TASK_PROTOCOL || t == TASK_STEP || (t >= TASK_CVS1 && t <= TASK_CVS3);
}
// What the phase of a cholecystectomy follows from, beside instruments and objects.
static bool tells_phase(const char *tissue) { return !strcmp(tissue, "gallbladder") || !strncmp(tissue, "cystic_", 7); }

static void brief_tools(Lesson *l) {
    const char *names[PROTOCOL_MOST_MOVES];
    enum Task task = l->item->task;
    int n = 0;
    if (task == TASK_PHASE || task == TASK_CVS || task == TASK_PROTOCOL) { // which ones, not how many
        n = kinds(l, names);
        text_addf(l->out, " %s ", task_brief_question(TASK_TOOL));
        task_list_text(names, n, l->out);
        text_addf(l->out, "%s.", n ? "" : "none");
        return;
    }
    for (const Json *v = first(l->tools); v; v = v->next)
        text_addf(l->out, "%s%s %s", n++ ? ", " : " ", named(text_of(v, "name")), text_of(v, "cell"));
    text_addf(l->out, "%s.", n ? "" : " none");
}

static void brief_level(Lesson *l, int level) {
    const TaskItem *t = l->item;
    bool whole = task_info(t->task)->level == 3, criteria = json_get(l->truth, "cvs") && rests_on_criteria(t->task);
    int n = 0;
    if (level == 1) {
        brief_tools(l);
        for (const Json *v = first(l->tissues); v; v = v->next)
            if (t->task == TASK_TISSUE ||
                (tells_phase(text_of(v, "name")) && (t->task == TASK_PHASE || t->task == TASK_STEP)))
                text_addf(l->out, "%s%s", n++ ? ", " : " ", named(text_of(v, "name")));
        for (const Json *v = first(l->objects); v && (t->task == TASK_PHASE || t->task == TASK_STEP); v = v->next)
            text_addf(l->out, "%s%s", n++ ? ", " : " ", named(text_of(v, "name")));
        if (n) text_addf(l->out, ".");
        if (!criteria || whole) return;
    }
    if (criteria && (level == 2 || !whole)) {
        for (int k = 0; k < 3; k++)
            text_addf(l->out, " %s %s.", task_brief_question(TASK_CVS1 + k), criterion(l, k) ? "yes" : "no");
        if (t->task != TASK_STEP) return;
    }
    if (level == 2) {
        if (json_get(l->truth, "action")) text_addf(l->out, " %s", text_of(l->truth, "action"));
        for (const Json *v = first(l->tools); v && !json_get(l->truth, "action"); v = v->next)
            text_addf(l->out, "%s%s %s %s", n++ ? ", " : " ", text_of(v, "name"), verb_of(l, v), target_of(l, v));
        text_addf(l->out, "%s.", first(l->tools) ? "" : " none");
    } else if (t->task == TASK_STEP) {
        for (const Json *v = first(l->tools); v; v = v->next) n++;
        text_addf(l->out, " %s, %d tool%s, %s.", text_of(l->truth, "phase"), n, n == 1 ? "" : "s", t->answer);
    } else if (t->task == TASK_PROTOCOL) {
        ProtocolMove moves[PROTOCOL_MOST_MOVES];
        int last = walk(l, moves);
        for (int i = 0; i < last; i++)
            text_addf(l->out, "%s%s%s%s %s", i ? ", " : " ", moves[i].fact, *moves[i].value ? " " : "", moves[i].value,
                      moves[i].action);
        text_addf(l->out, ".");
    } else text_addf(l->out, " %s.", t->answer);
}

// ---------------------------------------------------------------------------------------------------------- lesson
static const char *reason_of(Lesson *l) {
    switch (task_info(l->item->task)->level) {
    case 1: return SAY(l, "a look at what is visible", "perceptual grounding", "recognition and place");
    case 2:
        return SAY(l, "the relation of instruments and tissues", "relational understanding", "who does what to what");
    default: return SAY(l, "reasoning about the context", "contextual reasoning", "a conclusion from the whole scene");
    }
}

// Misreads a criterion where they decide; else mistakes one instrument of the frame for doing something else that it could do.
static void mistake(Lesson *l) {
    int n = 0, others[TRIPLETS], n_others = 0;
    if (json_get(l->truth, "cvs") && (l->item->task == TASK_CVS || l->item->task == TASK_PROTOCOL)) {
        l->misread = 1 + task_pick(l->seed, l->item->id, 903, 3);
        return;
    }
    for (const Json *v = first(l->tools); v; v = v->next) n++;
    if (!n) return;
    const Json *tool = first(l->tools);
    for (int k = task_pick(l->seed, l->item->id, 901, n); k; k--) tool = tool->next;
    for (int k = 0; k < TRIPLETS; k++) {
        const uint8_t *x = cholect50_triplets[k];
        bool same = !strcmp(cholect50_verbs[x[1]], text_of(tool, "verb")) &&
                    !strcmp(cholect50_targets[x[2]], text_of(tool, "target"));
        if (!same && !strcmp(cholect50_instruments[x[0]], text_of(tool, "name"))) others[n_others++] = k;
    }
    if (n_others) l->wrong = tool, l->mistake = others[task_pick(l->seed, l->item->id, 902, n_others)];
}

// Takes unmet criteria for met, and ends where that leads: said, a copy of the item, gets another answer.
static void overcall(Lesson *l, double share, TaskItem *said) {
    ProtocolMove moves[PROTOCOL_MOST_MOVES];
    enum Task task = said->task;
    bool single = task >= TASK_CVS1 && task <= TASK_CVS3;
    if (!json_get(l->truth, "cvs") || !(single || task == TASK_CVS || task == TASK_PROTOCOL)) return;
    for (int k = 0; k < 3; k++)
        l->overcalled[k] = !criterion(l, k) && task_pick(l->seed, said->id, 904 + (uint32_t)k, 1000000) < share * 1e6;
    if (task == TASK_PROTOCOL) said->answer = moves[walk(l, moves) - 1].action;
    else said->answer = criterion(l, single ? task - TASK_CVS1 : 3) ? "yes" : "no";
}

bool teach_text(const TaskItem *item, TaskWording wording, const Json *truth, TeachOptions o, Text *out, Err *e) {
    bool brief = o.brief;
    Text answer = {0};
    TaskItem said = *item;
    Lesson l = {.item = &said,
                .truth = truth,
                .tools = json_get(truth, "tools"),
                .tissues = json_get(truth, "tissues"),
                .objects = json_get(truth, "objects"),
                .seed = wording.seed,
                .out = out};
    int levels = task_info(item->task)->level;
    if (!l.tools || l.tools->type != JSON_ARRAY || !l.tissues || l.tissues->type != JSON_ARRAY)
        return err_set(e, "E-DS-02", AT(.sample = item->id, .field = "truth"),
                       "expected the truth of a drawn scene; found none; do: make the scenes with --truth");
    if (o.overcall > 0 && item->answer) overcall(&l, o.overcall, &said);
    if (!task_answer_text(&said, wording, &answer))
        return err_set(e, "E-DS-02", AT(.sample = item->id, .field = "answer"),
                       "expected a label; found none; do: make the scenes again");
    if (o.silent) {
        text_add(out, answer.p, answer.len);
        text_free(&answer);
        return true;
    }
    if (task_pick(l.seed, item->id, 900, 1000000) < o.wrong * 1e6) mistake(&l);
    text_addf(out, "<think>");
    if (!levels && brief) {
        const Json *tool = item->slot ? tool_of(&l, item->slot) : NULL;
        if (tool)
            text_addf(out, "%s %s: %s %s %s.", item->slot, text_of(tool, "cell"), item->slot, verb_of(&l, tool),
                      target_of(&l, tool));
        else text_addf(out, "%s.", item->answer ? item->answer : "none");
    } else if (!levels) {
        const Json *tool = item->slot ? tool_of(&l, item->slot) : NULL;
        text_addf(out, "%s",
                  SAY(&l, "To answer this one looks at the instrument itself.", "The question is about one instrument.",
                      "First the instrument has to be found."));
        tell_tools(&l), tell_tissues(&l, false), tell_objects(&l);
        if (tool && *text_of(tool, "verb")) tell_act(&l, tool);
        if (item->answer)
            text_addf(out, " %s %s.", SAY(&l, "So the answer is", "That gives", "This means"),
                      strlen(item->answer) < 70 ? named(item->answer) : item->answer);
    } else if (!brief) text_addf(out, "This is a Level %d task requiring %s.", levels, reason_of(&l));
    for (int k = 1; k <= levels; k++) {
        text_addf(out, "%sLevel %d:", k == 1 && brief ? "" : brief ? "\n" : "\n\n", k);
        if (brief) brief_level(&l, k);
        else if (k == 1) level_1(&l);
        else if (k == 2) level_2(&l);
        else level_3(&l);
    }
    text_addf(out, "</think>\n<answer>%s</answer>", answer.p);
    text_free(&answer);
    return true;
}

typedef struct Teaching {
    const char *data;
    uint64_t seed;
    TeachOptions o;
    FileWriter w;
    int64_t n;
} Teaching;

static bool teach_one(void *ctx, const Piece *p, Err *e) {
    Teaching *t = ctx;
    TaskRecord r;
    Text text = {0}, line = {0};
    if (!task_record_read(&r, p->text, p->len, t->data, p->number, e)) return false;
    TaskWording w = {.seed = t->seed, .choices = r.prompt && strstr(r.prompt, "\nA. ")};
    const Json *messages = json_get(r.doc.root, "messages");
    bool ok = (messages && messages->type == JSON_ARRAY && r.prompt) ||
              err_set(e, "E-DS-02", AT(.file = t->data, .line = p->line, .sample = r.item.id),
                      "expected \"messages\" with a question; found none; do: use the records of surgr1 scenes");
    ok = ok && teach_text(&r.item, w, json_get(r.doc.root, "truth"), t->o, &text, e);
    if (ok) {
        synth_record_print(r.doc.root, text.p, "scene-graph", NULL, &line);
        ok = file_write_bytes(&t->w, line.p, line.len, e), t->n++;
    }
    task_record_free(&r);
    text_free(&text), text_free(&line);
    return ok;
}

bool synth_teach(const char *data, const char *out, uint64_t seed, TeachOptions o, int64_t *n, Err *e) {
    Teaching t = {.data = data, .seed = seed, .o = o};
    if (!file_write_begin(&t.w, out, e)) return false;
    bool ok = pieces_read(data, NULL, teach_one, &t, e);
    *n = t.n;
    if (ok) return file_write_commit(&t.w, e);
    if (t.w.fd >= 0) file_write_abort(&t.w);
    return false;
}
