// protocol.c - the task that can be worked out but not recognised: which action a fixed protocol asks for next.
//
// What it is:  a walk through a table. It begins at "retract"; every instrument in view and every criterion of the critical
//              view of safety moves it to another of eight actions, and where it ends is the answer. Each move is one row of a
//              small table, so the walk is easy when its facts and moves are written down, and there are hundreds of ways
//              through it, so a few hundred labelled pictures do not show them all. That is where a chain of thought
//              has its point (Wies et al. 2022, arXiv 2204.02892: sub-task decomposition enables learning). Eight, because every
//              move is a permutation: one false step never ends right, and two of them seldom do.
// What it is not: surgery. The table is arbitrary on purpose: were it sensible, the answer could be guessed from the look of the
//              field, as phases and steps of a drawn scene can.
// Read before: surgr1.h, section data/protocol.c.  Read next: scenes.c, ../surgery/teach.c.
#include "../surgr1.h"

const char *const protocol_actions[PROTOCOL_ACTIONS] = {"retract", "dissect",  "coagulate", "cut",
                                                        "clip",    "aspirate", "irrigate",  "pack"};

// Instruments turn the walk by so many actions: turns commute, so the order in which instruments are named does not matter.
static int turn_of(const char *tool) {
    static const int turns[6] = {1, 2, 3, 5, 6, 7}; // of cholect50_instruments
    for (int i = 0; i < 6; i++)
        if (!strcmp(tool, cholect50_instruments[i])) return turns[i];
    return 0;
}

int protocol_walk(const char *const *tools, int n_tools, const bool criteria[3],
                  ProtocolMove moves[PROTOCOL_MOST_MOVES]) {
    static const char *const names[3] = {"structures", "triangle", "plate"};
    // [criterion][met][action]: permutations that do not commute, so that no sum over the facts gives the answer.
    static const int next[3][2][PROTOCOL_ACTIONS] = {{{3, 7, 4, 1, 6, 0, 2, 5}, {2, 5, 7, 4, 1, 3, 0, 6}},
                                                     {{0, 4, 7, 6, 3, 2, 1, 5}, {4, 3, 2, 7, 1, 6, 5, 0}},
                                                     {{2, 1, 7, 6, 3, 4, 5, 0}, {6, 3, 4, 1, 7, 5, 0, 2}}};
    int action = 0, n = 0;
    for (int i = 0; i < n_tools; i++) {
        bool again = false; // two graspers are one kind of instrument
        for (int j = 0; j < i; j++) again = again || !strcmp(tools[i], tools[j]);
        if (again || n >= PROTOCOL_MOST_MOVES - 3) continue;
        action = (action + turn_of(tools[i])) % PROTOCOL_ACTIONS;
        moves[n++] = (ProtocolMove){tools[i], "", protocol_actions[action]};
    }
    for (int k = 0; k < 3; k++) {
        action = next[k][criteria[k]][action];
        moves[n++] = (ProtocolMove){names[k], criteria[k] ? "yes" : "no", protocol_actions[action]};
    }
    return n;
}
