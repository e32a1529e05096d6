#!/bin/sh
# test_weights.sh MODEL - what can be said of a real checkpoint without knowing its answers: every file is accepted, an answer
# comes and ends by itself, and neither threads nor a second run change a byte of it. Takes minutes, and the model's size in memory.
surgr1=${SURGR1:-./surgr1}
model=$1
picture=test/fixtures/oracle/pipeline/ask/c0_0.png
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
try() { # WHAT command...
    what=$1
    shift
    if "$@"; then passed=$((passed + 1)) && echo "ok   $what"; else failed=$((failed + 1)) && echo "FAIL $what"; fi
}
answer() { "$surgr1" ask --model "$model" --image $picture --greedy --max-new-tokens 200 "$@" "Describe this picture in one sentence."; }

try "info" "$surgr1" info --model "$model"
try "config" "$surgr1" check config "$model"
try "tokenizer" "$surgr1" check tokenizer "$model"
try "weights" "$surgr1" check index "$model"
answer --json >"$dir/json"
try "an answer" grep -q '"answer":"[^"]' "$dir/json"
try "that ends by itself" grep -q '"stop":"end"' "$dir/json"
answer --threads 1 >"$dir/one" && answer >"$dir/all"
try "the same on any number of threads" cmp "$dir/one" "$dir/all"
echo "the answer was: $(cat "$dir/all")"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
