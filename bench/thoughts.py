#!/usr/bin/env python3
"""How true are the thoughts behind the answers? For the task `protocol` of the demo.

    python3 bench/thoughts.py TRUTH PREDICTIONS [PREDICTIONS ...]

TRUTH: records of `surgr1 scenes --tasks protocol --truth` for the same frames; PREDICTIONS: predictions.jsonl of `surgr1 eval`.
The demo's held-out frames with their truth (its seed and count):

    ./surgr1 scenes --out truth --count 400 --seed 990001 --size 96 --brief --reasoning --split held --tasks protocol --truth

Prints per file, in percent of all answers: right answers; thoughts that name the instruments in view and no other; that state all three
criteria as they are; whose walk takes no false step from what it states itself; and thoughts without any fault that also end right. The table
of moves is read from data/protocol.c. Development only.
"""
import json
import os
import re
import sys

NAMES = ["grasper", "bipolar", "hook", "scissors", "clipper", "irrigator"]
FACTS = ["structures", "triangle", "plate"]


def table():
    source = open(os.path.join(os.path.dirname(__file__), "..", "data", "protocol.c"), encoding="utf-8").read()
    actions = re.findall(r'"(\w+)"', re.search(r"protocol_actions\[PROTOCOL_ACTIONS\] = \{(.*?)\};", source, re.S).group(1))
    turns = [int(x) for x in re.search(r"turns\[6\] = \{(.*?)\}", source).group(1).split(",")]
    numbers = [int(x) for x in re.findall(r"\d+", re.search(r"next\[3\]\[2\]\[PROTOCOL_ACTIONS\] = \{(.*?)\};", source, re.S).group(1))]
    n = len(actions)
    moves = {(FACTS[k], v): numbers[(2 * k + v) * n:(2 * k + v + 1) * n] for k in range(3) for v in range(2)}
    return actions, dict(zip(NAMES, turns)), moves


THOUGHT = re.compile(r"<think>Level 1: Which tools\? (.*?)\.\nLevel 2: Two structures\? (\w+)\. Triangle clear\? (\w+)\. Plate seen\? (\w+)\.\n"
                     r"Level 3: (.*?)\.</think>\n<answer>(\w+)</answer>\s*$", re.S)


def walks_rightly(tools, criteria, walk, answer, actions, turns, moves):
    """Whether every step follows from the facts the thought states, each of them once, and the answer from the last step."""
    at, seen = 0, []
    for step in (s.split(" ") for s in walk.split(", ")):
        if len(step) == 2 and step[0] in turns:
            at = (at + turns[step[0]]) % len(actions)
            seen.append(step[0])
        elif len(step) == 3 and step[0] in FACTS and criteria[FACTS.index(step[0])] == step[1]:
            at = moves[step[0], int(step[1] == "yes")][at]
            seen.append(step[0])
        else:
            return False
        if step[-1] != actions[at]:
            return False
    return sorted(seen) == sorted(tools + FACTS) and answer == actions[at]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    rules = table()
    truth = {r["id"]: r["truth"] for r in map(json.loads, open(sys.argv[1], encoding="utf-8")) if r["task"] == "protocol"}
    print("right  tools  criteria  walk  all of it   answers  file")
    for path in sys.argv[2:]:
        n = right = tools_right = criteria_right = walk_right = whole = 0
        for record in map(json.loads, open(path, encoding="utf-8")):
            if record["task"] != "protocol":
                continue
            n += 1
            end = re.search(r"<answer>(\w+)</answer>\s*$", record["response"])
            hit = bool(end) and end.group(1) == record["answer"]
            right += hit
            found = THOUGHT.match(record["response"])
            if not found:
                continue
            seen = truth[record["id"]]
            tools = [t for t in re.split(", | and ", found.group(1)) if t != "none"]
            criteria = [found.group(k) for k in (2, 3, 4)]
            ok = [sorted(tools) == sorted({t["name"] for t in seen["tools"]}),
                  criteria == ["yes" if seen["cvs"][k] else "no" for k in ("c1", "c2", "c3")],
                  walks_rightly(tools, criteria, found.group(5), found.group(6), *rules)]
            tools_right, criteria_right, walk_right = tools_right + ok[0], criteria_right + ok[1], walk_right + ok[2]
            whole += all(ok) and hit
        share = [100 * x / max(n, 1) for x in (right, tools_right, criteria_right, walk_right, whole)]
        print("%5.1f  %5.1f  %8.1f  %4.1f  %9.1f  %8d  %s" % (*share, n, path))


if __name__ == "__main__":
    main()
