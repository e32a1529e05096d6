#!/bin/sh
# test_demo.sh - what a user meets first: the base model answers about its example picture, its files are those that were
# made, and the recipe of the demo runs from end to end. Each of its trainings is cut to two steps: the numbers of the demo are
# not looked at here, only that every stage takes what the one before it made.
#
# SURGR1 names the program (./surgr1).
surgr1=${SURGR1:-$PWD/surgr1}
root=$PWD
command -v "$surgr1" >/dev/null || {
    echo "FAIL $surgr1 is not there"
    exit 1
}
dir=$(mktemp -d -p "${TMPDIR:-$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)}") || exit 1 # in memory: every stamp is fsynced
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
check() { # WHAT command...
    what=$1
    shift
    if "$@" >"$dir/check" 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $what"
        tail -n 5 "$dir/check"
    fi
}
is() { [ "$1" = "$2" ]; }

# the base model: what the README asks, and questions with one right answer in the picture
ask() { "$surgr1" ask --model "$root/data/base" --image "$root/data/base/example.png" --quiet "$@" 2>&1; }
check "the files of data/base are those of its SHA256SUMS" sh -c "cd '$root/data/base' && sha256sum -c --quiet SHA256SUMS"
check "data/base takes at most 6 MB" sh -c "[ \"\$(du -sk --apparent-size '$root/data/base' | cut -f 1)\" -le 6144 ]"
while IFS='|' read -r question answer; do
    check "the base model answers \"$question\"" is "$(ask "$question")" "$answer"
done <"$root/data/base/example.txt"

# the demo in small
small="plain_scenes=20 plain_steps=2 labelled_scenes=10 more_scenes=20 rehearsal_scenes=6 cold_steps=2 pool_scenes=20 rl_scenes=20 rl_steps=2 prompts=2 refine_scenes=4
refine_steps=2 held_scenes=12 vqla_held_scenes=6 vqla_steps=2 vqla_rl_steps=2 more_steps=2 direct_steps=2 gate=0 weak=keep"
set -- "$root/data/recipes/demo.json" --set "out=$dir/demo" --with full
for setting in $small; do set -- "$@" --set "$setting"; done
check "the demo runs" "$surgr1" run "$@"
check "its table has every arm" sh -c "[ \"\$(grep -c 'not run' '$dir/demo/table-full/table.txt')\" -eq 0 ]"
check "its page is there" test -s "$dir/demo/report.html"
"$surgr1" run "$@" >"$dir/again" 2>&1
check "a second time finds everything done" grep -qE '(^|[^0-9])0 stages run' "$dir/again"
check "both recipes of real models are understood" sh -c "'$surgr1' run '$root/data/recipes/surg-r1.json' --list >/dev/null &&
    '$surgr1' run '$root/data/recipes/surgery-r1.json' --list >/dev/null"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
