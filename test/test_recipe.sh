#!/bin/sh
# test_recipe.sh - surgr1 run: what it checks before anything runs, skips, refuses, throws away, never throws away, resumes.
#
# SURGR1 names the program (./surgr1). The stages are drawn scenes and a few steps on the committed tiny checkpoint.
surgr1=${SURGR1:-$PWD/surgr1}
model=$PWD/test/fixtures/oracle/pipeline/ask/checkpoint
recipes=$PWD/data/recipes
command -v "$surgr1" >/dev/null || {
    echo "FAIL $surgr1 is not there"
    exit 1
}
dir=$(mktemp -d -p "${TMPDIR:-$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)}") || exit 1 # in memory: every stamp is fsynced
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
passed=0 failed=0 skipped=0
check() { # WHAT command...
    what=$1
    shift
    if "$@" >"$dir/check" 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $what"
        head -n 5 err "$dir/check" 2>/dev/null
    fi
}
run() { # out, err, rc
    "$surgr1" run "$@" >out 2>err </dev/null
    rc=$?
}
said() { # WHAT EXIT TEXT, of the last run: exit code and text on standard error
    check "$1 (exit $rc, not $2)" [ "$rc" -eq "$2" ]
    check "$1: without \"$3\"" grep -qF -- "$3" err
}
ran() { # WHAT N: how many stages the last run started
    check "$1" [ "$(grep -c '^\[.*: surgr1 ' err)" -eq "$2" ]
}
recipe() { # FILE VARIABLES STAGES
    printf '{"format":1,"name":"try","variables":{"out":"o"%s},"stages":[%s]}' "$2" "$3" >"$1"
}
same() { cmp "$1" "$2"; }
gone() { [ ! -e "$1" ]; }

scenes='{"name":"scenes","command":"scenes","options":{"out":"{out}/scenes","count":"{n}","seed":"{seed}","size":64,"truth":true,"tasks":"phase,step","quiet":true},"makes":"{out}/scenes/train.jsonl","fresh":"{out}/scenes","seconds":1}'
teach='{"name":"teach","command":"synth","arguments":["teach"],"options":{"data":"{out}/scenes/train.jsonl","out":"{out}/teach.jsonl"},"makes":"{out}/teach.jsonl","seconds":1}'
more='{"name":"more","command":"limits","tags":["full"]}'
recipe r.json ',"n":4,"seed":1' "$scenes,$teach,$more"

# --- slips are found before anything runs ------------------------------------------------------------------------------
slip() { # WHAT STAGE TEXT: a good stage, then a bad one: nothing may have run
    recipe slip.json ',"n":4,"seed":1' "$scenes,$2"
    run slip.json
    said "$1" 3 "$3"
    check "$1, and yet something was made" gone o
}
slip "an unknown option" '{"name":"x","command":"sft","options":{"modle":"m"}}' 'expected an option of surgr1 sft; found "modle"; do: write model'
slip "an unknown command" '{"name":"x","command":"sfd"}' 'found "sfd"; do: write sft'
slip "a number out of range" '{"name":"x","command":"sft","options":{"beta1":1.5}}' 'what --beta1 takes'
slip "no number" '{"name":"x","command":"sft","options":{"steps":"ten"}}' 'whole, from 0'
slip "a word that is no choice" '{"name":"x","command":"scenes","options":{"style":"blurred"}}' 'clear|natural'
slip "a value for a flag" '{"name":"x","command":"scenes","options":{"truth":"perhaps"}}' 'expected true or false'
slip "an option twice that is taken once" '{"name":"x","command":"sft","options":{"model":["a","b"]}}' 'at most 1 value'
slip "an argument too few" '{"name":"x","command":"synth"}' 'do: see surgr1 synth --help'
slip "a variable that is none" '{"name":"x","command":"scenes","options":{"out":"{out}/{place}"}}' 'found "{place}"'
slip "an unknown member" '{"name":"x","command":"limits","option":{}}' 'field "option"'
slip "no command" '{"name":"x"}' 'field "command": expected a command of surgr1; found none'
slip "no name" '{"command":"limits"}' 'field "name"'
slip "an unknown option of a training within" '{"name":"x","command":"refine","options":{"model":"m"},"sft":{"lr":1e-4,"epoch":1}}' 'expected an option of surgr1 sft; found "epoch"; do: write epochs'
slip "a training within what has none" '{"name":"x","command":"limits","sft":{}}' 'the command refine alone'
slip "a name twice" '{"name":"scenes","command":"limits"}' 'a name of its own'
slip "a stage after a later one" '{"name":"x","command":"limits","after":"y"},{"name":"y","command":"limits"}' 'found "y"'
slip "a folder outside of out" '{"name":"x","command":"limits","fresh":"{out}/../x"}' 'beneath {out}'
slip "a folder elsewhere" '{"name":"x","command":"limits","folder":"/tmp/x"}' 'beneath {out}'
slip "all of out" '{"name":"x","command":"limits","folder":"{out}"}' 'beneath {out}'
slip "the stamps" '{"name":"x","command":"limits","folder":"{out}/.stages"}' 'beneath {out}'
slip "a folder of two stages" '{"name":"x","command":"limits","folder":"{out}/scenes/frames"}' 'that of stage scenes'
run r.json --set sed=2
said "a variable of the command line that is none" 2 'do: write seed'
run r.json --only scenes,teech
said "a stage that is none" 2 'found "teech"'
printf '{"format":1,"name":"t","needs":["{model}/config.json"],"variables":{"out":"o","model":"nowhere"},"stages":[{"name":"x","command":"limits"}]}' >needs.json
run needs.json
said "what a recipe needs" 4 'nowhere/config.json'
check "and yet it ran" gone o/.stages/x.json
rm -rf o

# --- listing, variables, variants --------------------------------------------------------------------------------------
printf '%s' '{"format":1,"name":"sizes","variables":{"size":"big","out":"{here}/o-{size}","words":"it'"'"'s {1,2}"},
 "variants":{"size":{"big":{"n":7,"nice":true},"small":{"n":2,"nice":false}}},
 "stages":[{"name":"a b","about":"said","command":"scenes","options":{"count":"{n}","out":"{out}/s","truth":"{nice}","tasks":"{words}","split":"","threads":null}}]}' >sizes.json
run sizes.json --list
check "the list of a recipe" grep -qF "surgr1 scenes --count 7 --out ./o-big/s --truth --tasks 'it'\\''s {1,2}'" out
check "a list that makes something" gone o-big
run sizes.json --list --set size=small --set n=3
check "another variant" grep -qF "surgr1 scenes --count 3 --out ./o-small/s --tasks" out
recipe within.json '' '{"name":"x","command":"refine","options":{"model":"m","out":"{out}/r"},"sft":{"lr":1e-4,"lora":"decoder"}}'
run within.json --list
check "options of a training within" grep -qF "surgr1 refine --model m --out o/r -- --lr 1e-4 --lora decoder" out
run sizes.json --list --set size=huge
said "a variant that is none" 3 'expected one of big, small; found "huge"'
run sizes.json
said "a stage that fails" 2 "a b failed, exit 2 after"
line=$(sed -n 's/.*failed, exit 2 after [^:]*: //p' err | sed "s|^surgr1|\"$surgr1\"|")
eval "$line" >/dev/null 2>again
check "the line of the stage, pasted" grep -qF "$(grep 'error E-' err)" again
check "a failed stage has no stamp" gone "o-big/.stages/a b.json"

# --- done, skipped, changed, stale, thrown away ---------------------------------------------------------------------------
run r.json --only teach
said "a stage without the one it comes from" 9 'expected stage scenes'
run r.json
said "the first run" 0 'try: 2 stages run, 0 done before'
check "the order and the numbers of stages" grep -q '^\[2/2\] teach.*: surgr1 synth --data o/scenes/train.jsonl --out o/teach.jsonl teach$' err
check "the recipe as it was resolved" grep -qF '"seed":"1"' o/recipe.json
cp -r o first
run r.json
said "the second run" 0 'try: 0 stages run, 2 done before'
check "a stamp written anew" same first/.stages/scenes.json o/.stages/scenes.json
run r.json --with full
said "a tag" 0 'try: 1 stages run, 2 done before'
check "what the stages print" grep -q LIMIT_ out
run r.json --with ful
said "a tag that is none" 2 'expected a tag'
run r.json --set seed=2
said "a changed line" 9 'found --seed "2" instead of --seed "1"'
ran "a changed recipe ran something" 0
run r.json --set seed=2 --list
check "changed in the list" grep -q '^ 1  changed  scenes' out
check "stale in the list" grep -q '^ 2  stale    teach' out
recipe threads.json ',"n":4,"seed":1' "$(printf %s "$scenes" | sed 's/"size":64/"threads":1,"size":64/'),$teach"
run threads.json
said "another number of threads is no change" 0 'try: 0 stages run, 2 done before'
run r.json --redo scenes --set seed=2
said "a stage made anew, and what comes from it" 0 'try: 2 stages run, 0 done before'
check "records of another seed" [ "$(grep -c scenes-2- o/scenes/train.jsonl)" -gt 0 ]
run r.json --set seed=2 --only scenes --redo scenes
said "a stage made anew alone" 0 'try: 1 stages run'
run r.json --set seed=2
said "what came from the old one" 9 "--redo 'teach'"
run r.json --set seed=2 --redo teach
said "made anew too" 0 'try: 1 stages run, 1 done before'
check "and no folder of another stage went" [ -f o/scenes/train.jsonl ]
rm o/teach.jsonl
run r.json --set seed=2 --from teach
said "a result that is gone is made again" 0 'try: 1 stages run'
check "it is there again" [ -s o/teach.jsonl ]

# --- what is never removed ------------------------------------------------------------------------------------------------
rm -rf o && mkdir -p o/scenes && echo mine >o/scenes/notes
run r.json --only scenes
said "a folder that was there" 0 'try: 1 stages run'
run r.json --redo scenes
said "somebody else's folder" 3 'that was there before'
check "and it is gone" grep -q mine o/scenes/notes
check "and yet its stamp went" [ -f o/.stages/scenes.json ]
rm -rf o
run r.json
mv o/scenes elsewhere && ln -s ../elsewhere o/scenes
run r.json --redo scenes
said "a link in the folder's place" 5 'found a link'
check "what the link led to" [ -f elsewhere/train.jsonl ]
rm -rf o elsewhere

# --- half-made: killed while drawing ------------------------------------------------------------------------------------
recipe many.json ',"n":50000,"seed":3' "$scenes"
"$surgr1" run many.json >/dev/null 2>&1 &
pid=$!
for i in $(seq 200); do [ -e o/scenes/frames/000100.png ] && break || sleep 0.05; done
run many.json
said "two runs of one folder" 10 'E-LK-01'
kill -9 $pid
wait $pid 2>/dev/null
for i in $(seq 100); do flock -n o/.stages/LOCK true && break || sleep 0.05; done
check "nothing half-made was left to test with" [ -e o/scenes/frames/000100.png ]
run many.json --set n=3
said "a half-made folder begins anew" 0 'removing o/scenes, which this recipe made'
check "frames of the first start are left" [ "$(ls o/scenes/frames | wc -l)" -eq 3 ]
rm -rf o

# --- stopped in a training, and on to the same bytes ------------------------------------------------------------------------
train='{"name":"cold start","command":"sft","options":{"model":"{model}","data":["{out}/teach.jsonl"],"image-root":"{out}/scenes","out":"{out}/cold","lora":"decoder","steps":40,"batch":1,"save-every":5,"threads":1,"quiet":true},"makes":"{out}/cold/export","folder":"{out}/cold","seconds":5}'
recipe train.json ",\"n\":4,\"seed\":1,\"model\":\"$model\"" "$scenes,$(printf %s "$teach"),$train"
run train.json
said "a training" 0 'try: 3 stages run'
mv o whole
"$surgr1" run train.json >out 2>err &
pid=$!
for i in $(seq 400); do ls o/cold/ckpt 2>/dev/null | grep -q step && break || sleep 0.02; done
kill -TERM $pid
wait $pid
rc=$?
said "a stop" 75 'cold start was stopped, exit 75 after'
check "the line to go on with" grep -q 'was stopped.*: surgr1 sft --model' err
check "a stopped stage has no stamp" gone "o/.stages/cold start.json"
run train.json
said "on from there" 0 'try: 1 stages run, 2 done before'
check "the same bytes as without the stop" "$surgr1" compare whole/cold o/cold
run train.json --redo 'cold start'
said "a training thrown away" 0 'removing o/cold'
check "the same bytes again" "$surgr1" compare whole/cold o/cold

# --- the recipes that are shipped -------------------------------------------------------------------------------------------
for r in "$recipes"/*.json; do
    grep -q '"stages"' "$r" || continue
    run "$r" --list
    check "$(basename "$r") is refused: $(head -n 1 err)" [ "$rc" -eq 0 ]
done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
