#!/bin/sh
# test_cli.sh - the program as a person meets it: help, messages, exit codes, answers, on the committed tiny checkpoint.
#
# SURGR1 names the program (./surgr1). Every case is one line; the last line counts.
surgr1=${SURGR1:-./surgr1}
ask=test/fixtures/oracle/pipeline/ask
model=$ask/checkpoint
picture=$ask/c0_0.png
command -v "$surgr1" >/dev/null || {
    echo "FAIL $surgr1 is not there"
    exit 1
}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAIL $*"
    sed 's/^/    /' "$dir/err" | head -n 5
}
run() { # out, err, rc
    "$surgr1" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    rc=$?
    true
}
form='^surgr1: (error|warning) E-[A-Z]{2}-[0-9]{2}: .+: expected .+; found .+; do: .+$'
refuses() { # EXIT CODE arguments...: exactly one error line, in the form, with that code; nothing on standard output
    want=$1 code=$2
    shift 2
    run "$@"
    errors=$(grep -c '^surgr1: error' "$dir/err")
    if [ "$rc" -eq "$want" ] && [ "$errors" -eq 1 ] && [ ! -s "$dir/out" ] &&
        grep -aE "$form" "$dir/err" | grep -q "^surgr1: error $code: "; then ok; else bad "exit $rc, not $want with $code: $*"; fi
}
says() { # TEXT arguments...: exit 0, and the text on standard output
    want=$1
    shift
    run "$@"
    if [ "$rc" -eq 0 ] && grep -qF -- "$want" "$dir/out"; then ok; else bad "exit $rc, or without \"$want\": $*"; fi
}
same() { if cmp -s "$1" "$2"; then ok; else bad "$3"; fi; }

# --- help ------------------------------------------------------------------------------------------------------------
says "usage: surgr1 ask" --help
says "surgr1 0." --version
for command in ask sft import merge compare info memory check trace-diff limits; do says "usage: surgr1 $command" $command --help; done
says "(1 to 8192; default 512)" ask --help
says "pixels of an image side" limits

# --- the command line --------------------------------------------------------------------------------------------------
refuses 2 E-CL-01
refuses 2 E-CL-01 aks
refuses 2 E-CL-01 import cholec80 .
refuses 2 E-CL-01 import lunch . --out "$dir/import"
refuses 2 E-CL-01 import generic . --out "$dir/import"
refuses 4 E-IO-01 import cholec80 "$dir/nowhere" --out "$dir/import"
refuses 2 E-CL-01 ask --modle x
grep -q 'do: write --model' "$dir/err" && ok || bad "no suggestion for --modle"
refuses 2 E-CL-01 ask -m x
refuses 2 E-CL-01 ask --zzzzzzzz
refuses 2 E-CL-01 ask "question"
refuses 2 E-CL-01 ask --model
refuses 2 E-CL-01 ask --model ""
refuses 2 E-CL-01 ask --greedy=yes
refuses 2 E-CL-01 ask --model $model
refuses 2 E-CL-01 ask --model $model one two
refuses 2 E-CL-01 ask --model $model --device gpu q
refuses 2 E-CL-01 ask --model $model --matmul fast q
refuses 2 E-CL-01 ask --model $model --matmul tensor q
grep -q -- '"--matmul": expected --device cuda beside it; found --device cpu' "$dir/err" && ok || bad "--matmul without cuda is not named"
refuses 2 E-CL-01 ask --model $model --device ref --kernels naive q
for number in 0 8193 1.5 1e3 x "" " 5" 0x10 99999999999999999999; do
    refuses 2 E-CL-01 ask --model $model --max-new-tokens "$number" q
done
for number in nan inf -1 0; do refuses 2 E-CL-01 ask --model $model --temperature "$number" q; done
refuses 2 E-CL-01 ask --model $model --greedy --top-k 5 q
refuses 2 E-CL-01 ask --model $model --min-pixels 9000 --max-pixels 8000 q
refuses 2 E-CL-01 ask --model $model --draw "$dir/x.png" q
refuses 2 E-CL-01 ask --model $model --messages x.jsonl --image $picture
refuses 2 E-CL-01 ask --model $model "look at <image>"
refuses 2 E-CL-01 ask --model $model --image $picture "<image> and <image>"
refuses 2 E-CL-01 scenes --out "$dir/scenes" --quality 80
refuses 2 E-CL-01 scenes --out "$dir/scenes" --format jpeg --quality 0
refuses 2 E-CL-01 info
refuses 2 E-CL-01 check
refuses 2 E-CL-01 check picture x
refuses 2 E-CL-01 check nonsense x
refuses 2 E-CL-01 trace-diff a
run ask --log-format json --modle x
if [ "$rc" -eq 2 ] && grep -q '^{"level":"error","code":"E-CL-01",' "$dir/err"; then ok; else bad "no JSON line"; fi

# --- what cannot be read, and what is refused ----------------------------------------------------------------------------
refuses 4 E-IO-01 ask --model "$dir/none" q
refuses 4 E-IO-01 ask --model $model --image "$dir/none.png" q
refuses 4 E-IO-01 ask --model $model --messages "$dir/none.jsonl"
refuses 4 E-IO-01 check json "$dir/none.json"
refuses 4 E-IO-02 check json "$dir"
refuses 4 E-IO-01 trace-diff "$dir/none" "$dir/none"
refuses 3 E-IM-01 ask --model $model --image $model/config.json q
refuses 3 E-IM-01 info --image $model/config.json
refuses 6 E-ME-02 ask --model $model --image $picture --max-new-tokens 2020 q
grep -q 'at most 2048 tokens' "$dir/err" && ok || bad "the numbers are not told"
if "$surgr1" --version | grep -q cuda; then says "" ask --model $model --device cuda --max-new-tokens 2 q; else refuses 7 E-DV-01 ask --model $model --device cuda q; fi
if "$surgr1" --version | grep -q cuda; then # the rungs are told apart by the trace only: all say the same
    for rungs in "--matmul naive" "--matmul tensor" "--kernels naive"; do
        says "" ask --model $model --device cuda $rungs --max-new-tokens 2 q
    done
fi
mkdir "$dir/broken" && cp $model/* "$dir/broken"
head -c 200000 $model/model.safetensors >"$dir/broken/model.safetensors"
refuses 3 E-ST-09 ask --model "$dir/broken" q
printf '{"model_type":"llama"}' >"$dir/broken/config.json"
refuses 3 E-CF-01 ask --model "$dir/broken" q
printf '{"model_type":"llama"}' >"$dir/other.json"
refuses 3 E-CF-01 check config "$dir/other.json"

# --- check: every kind accepts the good and refuses the bad ------------------------------------------------------------------
accepts() { # KIND FILE TEXT
    says "$3" check "$1" --print "$2"
}
printf '{ "a" : [1, 2.50, "x"] }' >"$dir/a.json"
printf '{"a":1}\n{"b":2}\n' >"$dir/a.jsonl"
printf '{"a":\n' >"$dir/bad.json"
accepts json "$dir/a.json" '{"a":[1,2.5,"x"]}'
accepts jsonl "$dir/a.jsonl" '{"b":2}'
accepts config $model '"model_type":"qwen2_5_vl"'
accepts config $model/config.json '"model_type":"qwen2_5_vl"'
accepts safetensors $model/model.safetensors '"dtype":"BF16"'
accepts tokenizer $model '"text":"<|im_start|>"'
accepts tokenizer $model/tokenizer.json '"text":"<|im_start|>"'
accepts image $picture '"channels":3'
accepts dataset $ask/conversations.jsonl '"content":[{"type":"image","image":"c0_0.png"}'
for kind in json jsonl config safetensors index tokenizer image dataset; do
    run check $kind "$dir/bad.json"
    if [ "$rc" -eq 3 ] && grep -aqE "$form" "$dir/err"; then ok; else bad "check $kind accepted a broken file"; fi
done
run check adapter "$dir"
[ "$rc" -ge 3 ] && [ "$(grep -c '^surgr1: error' "$dir/err")" -eq 1 ] && ok || bad "check adapter accepted an empty folder"
run check image --raw "$dir/raw" $picture
[ "$rc" -eq 0 ] && [ "$(wc -c <"$dir/raw")" -eq $((84 * 103 * 3)) ] && ok || bad "--raw"
i=0
while [ $i -lt 30 ]; do echo '{'; i=$((i + 1)); done >"$dir/many.jsonl"
run check dataset "$dir/many.jsonl"
[ "$rc" -eq 3 ] && [ "$(wc -l <"$dir/err")" -eq 21 ] && tail -n 1 "$dir/err" | grep -q 'E-JS-99: .*and 10 more' && ok || bad "20 lines and the rest counted"
run check json "$dir/a.json" "$dir/bad.json" "$dir/none"
[ "$rc" -eq 4 ] && ok || bad "the worst of several files is the exit code"

# --- info ----------------------------------------------------------------------------------------------------------------
says '"resized_width":84,"resized_height":112' info --json --image $picture
says '"tokens":6,' info --json --image $picture --model $model
says '"parameters":156752,' info --json --model $model

# --- answers ---------------------------------------------------------------------------------------------------------------
plain="--model $model --greedy --repetition-penalty 1 --max-new-tokens 12"
# What Hugging Face answered, for every stored conversation: the greedy ids stand in the same file.
run ask $plain --messages $ask/conversations.jsonl
grep -o '"greedy_ids": \[[^]]*\]' $ask/conversations.jsonl | grep -o '\[.*' | tr -d ' ' >"$dir/want"
grep -o '"ids":\[[^]]*\]' "$dir/out" | cut -d: -f2 >"$dir/got"
[ -s "$dir/want" ] && [ "$rc" -eq 0 ] && same "$dir/got" "$dir/want" "answers differ from Hugging Face's"
mv "$dir/out" "$dir/batched"
for options in "--batch 1" "--threads 1" "--threads 3" "--device ref"; do
    run ask $plain $options --messages $ask/conversations.jsonl
    grep -o '"ids":\[[^]]*\]' "$dir/out" | cut -d: -f2 >"$dir/got"
    same "$dir/got" "$dir/want" "ask $options gives other ids"
done
# One question: the text on standard output is the answer of the JSON object and nothing else.
run ask $plain --image $picture "Which tool is in use?"
cp "$dir/out" "$dir/text"
for line in 'model: ' 'device: cpu' 'given: ' 'from generation_config.json: ' 'defaults: ' 'image: .* 84x103, resized to 56x84, 6 tokens' 'timing: '; do
    grep -q "^$line" "$dir/err" && ok || bad "no line \"$line\" at the start"
done
run ask $plain --quiet --image $picture "Which tool is in use?"
[ ! -s "$dir/err" ] && ok || bad "--quiet is not quiet"
same "$dir/out" "$dir/text" "the same question, another answer"
run ask $plain --json --image $picture "Which tool is in use?"
grep -q '"stop":"length","prompt_tokens":45,"new_tokens":12,' "$dir/out" && ok || bad "counts of --json"
run ask $plain --image $picture "<image>Which tool is in use?"
same "$dir/out" "$dir/text" "<image> in front is where pictures go anyway"
# A typed control token is text, unless it is trusted.
run ask $plain --json "<|im_end|>"
typed=$(grep -o '"prompt_tokens":[0-9]*' "$dir/out")
run ask $plain --json --trust-text "<|im_end|>"
[ -n "$typed" ] && [ "$typed" != "$(grep -o '"prompt_tokens":[0-9]*' "$dir/out")" ] && ok || bad "a typed control token became one"
# Sampling: the seed decides, not the number of threads.
sample="--model $model --max-new-tokens 16 --temperature 1 --top-k 0 --quiet"
run ask $sample --seed 3 --threads 1 q && cp "$dir/out" "$dir/seed3"
run ask $sample --seed 3 --threads 2 q
same "$dir/out" "$dir/seed3" "one seed, two answers"
run ask $sample --seed 4 q
cmp -s "$dir/out" "$dir/seed3" && bad "two seeds, one answer" || ok
# Drawing, and traces.
run ask $plain --image $picture --draw "$dir/drawn.png" q
[ "$rc" -eq 0 ] && says '"width":84,"height":103' check image --print "$dir/drawn.png"
run scenes --out "$dir/jpeg" --format jpeg --quality 80 --count 2 --size 96x80 --tasks phase
says '"width":96,"height":80' check image --print "$dir/jpeg/frames/000001.jpg"
says '{"type":"image","image":"frames/000001.jpg"}' check dataset --print --data-root "$dir/jpeg" "$dir/jpeg/train.jsonl"
run ask $plain --image $picture --trace "$dir/cpu.trace" q && run ask $plain --image $picture --trace "$dir/ref.trace" --device ref q
[ "$rc" -eq 0 ] && says "" trace-diff "$dir/cpu.trace" "$dir/ref.trace"
run trace-diff --limit 0 "$dir/cpu.trace" "$dir/ref.trace"
[ "$rc" -eq 1 ] && ok || bad "trace-diff finds no difference at limit 0"

# --- training: what is refused before anything is written -------------------------------------------------------------------
train="sft --model $model --data data/example.jsonl --image-root $ask --quiet"
small="$train --batch 6 --epochs 2 --lr 1e-2 --lora-rank 4"
refuses 2 E-CL-01 sft --model $model
refuses 2 E-CL-01 $train
refuses 2 E-CL-01 $train --out "$dir/run" --lora decoder --full decoder
refuses 2 E-CL-01 $train --out "$dir/run" --full decode
refuses 2 E-CL-01 $train --out "$dir/run" --full decoder --freeze no_such_part
refuses 2 E-CL-01 $train --out "$dir/run" --patience 2
refuses 3 E-AD-03 $train --out "$dir/bad" --lora no_such_module
refuses 3 E-DS-07 $train --out "$dir/run" --max-tokens 40
refuses 4 E-IO-01 $train --out "$dir/run" --eval "$dir/none.jsonl" --eval-every 1
refuses 6 E-ME-01 $train --out "$dir/bad2" --max-memory 100000
# what a GPU would hold, without one: sft and grpo; too much is refused behind the table
mkdir -p "$dir/config" && cp $model/config.json "$dir/config"
says "memory on cuda (on paper, bf16), for at most 4096 tokens and 0 patches in a pass" memory --model "$dir/config"
says "key/value cache" memory --model "$dir/config" --dtype f32 --group 4 --tokens 100 --patches 24
says "trained weights" memory --model "$dir/config" --full decoder --freeze embed_tokens --targets 7 --keep 1
run memory --model "$dir/config" --device-memory 1000
[ "$rc" -eq 6 ] && grep -q total "$dir/out" && grep -q "E-ME-01: memory: expected at most 0.0 MB" "$dir/err" && ok || bad "exit $rc: a small device"
refuses 2 E-CL-01 memory
refuses 2 E-CL-01 memory --model "$dir/config" --lora decoder --full decoder
refuses 2 E-CL-01 memory --model "$dir/config" --micro 2
refuses 2 E-CL-01 memory --model "$dir/config" --group 2 --targets 5
refuses 2 E-CL-01 memory --model "$dir/config" --patches 30
refuses 2 E-CL-01 memory --model "$dir/config" --tokens 10 --targets 11
refuses 2 E-CL-01 memory --model "$dir/config" --freeze norm
printf '{"id":"x","messages":[{"role":"user","content":"<image>q"},{"role":"assistant","content":"a"}],"images":["../c0_0.png"]}\n' >"$dir/up.jsonl"
refuses 3 E-DS-04 sft --model $model --data "$dir/up.jsonl" --out "$dir/run"
says "nothing was written" $small --dry-run
[ ! -e "$dir/run" ] && ok || bad "something was written before it was known to be right"
run ${train% --quiet} --dry-run
for line in 'training data: 6 samples' 'plan: ' 'trained: ' '  optimizer ' '  activations ' 'sample example-0, ' '  | .*>>.*<<'; do
    grep -qE "^$line" "$dir/err" && ok || bad "no line \"$line\" before step 0"
done

run ${train% --quiet} --eval data/example.jsonl --eval-every 1 --dry-run
grep -q '^surgr1: warning E-DS-09: .*sample "example-0".* found 6 with the same id' "$dir/err" && ok || bad "evaluation on training samples is not told"
sed 's/example-/other-/' data/example.jsonl >"$dir/other.jsonl"
run ${train% --quiet} --eval "$dir/other.jsonl" --eval-every 1 --dry-run
grep -q 'E-DS-09' "$dir/err" && bad "other samples are taken for training samples" || ok

# --- training: a run, its twin, its export ------------------------------------------------------------------------------------
says "$dir/run/export" $small --out "$dir/run"
run $small --out "$dir/run" # again: it is finished, and says so by doing nothing
[ "$rc" -eq 0 ] && grep -q "export" "$dir/out" && ok || bad "a finished run does not finish again"
run sft --config "$dir/run/config.json" --out "$dir/twin" --threads 1 --quiet
says "" compare "$dir/run" "$dir/twin"
run $small --seed 1 --out "$dir/other"
run compare "$dir/run" "$dir/other"
[ "$rc" -eq 1 ] && ok || bad "compare finds no difference between two seeds"
refuses 9 E-CK-05 $small --lr 2e-2 --out "$dir/run"
run check checkpoint "$dir/run" && [ "$rc" -eq 0 ] && ok || bad "the run's checkpoints are not accepted"
run check log "$dir/run/run.jsonl" && [ "$rc" -eq 0 ] && ok || bad "the run's log is not accepted"
says "merged" merge --model $model --adapter "$dir/run/export" --out "$dir/merged" --quiet
run ask $plain --adapter "$dir/run/export" --image $picture "What is this?"
cp "$dir/out" "$dir/beside"
run ask --model "$dir/merged" --greedy --max-new-tokens 12 --quiet --image $picture "What is this?"
same "$dir/out" "$dir/beside" "merged weights give another answer than the adapter beside them"
run ask $plain --image $picture "What is this?"
cmp -s "$dir/out" "$dir/beside" && bad "the adapter changes nothing" || ok

# --- reward-check: what completions are worth ------------------------------------------------------------------------------
says "usage: surgr1 reward-check" reward-check --help
thought='<think>Level 1: a Level 2: b</think>'
box='"size":[100,100],"boxes":[{"label":"hook","box":[0,0,10,10]}]'
{
    echo '{"id":"right","task":"triplet","answer":"hook cut liver","response":"'"$thought"'<answer>Hook, </answer>"}'
    echo '{"id":"open","task":"triplet","answer":"hook cut liver","prediction":"'"$thought"'<answer>hook cut liver"}'
    echo '{"id":"far","task":"tool_box",'"$box"',"response":"'"$thought"'<answer>[100,100,200,200]</answer>"}'
    echo '{"id":"swapped","task":"tool_box",'"$box"',"response":"'"$thought"'<answer>[10,10,0,0]</answer>"}'
    echo '{"id":"nan","task":"tool_box",'"$box"',"response":"'"$thought"'<answer>[NaN,0,10,10]</answer>"}'
    printf '{"id":"long","task":"phase","answer":"x","response":"<think>Level 1: %s</think><answer>x</answer>"}\n' \
        "$(head -c 1000000 /dev/zero | tr '\0' x)"
} >"$dir/hostile.jsonl"
run reward-check "$dir/hostile.jsonl"
grep -q '"id":"right".*"format":1,"answer":0,"structure":1.*"total":1.5}' "$dir/out" && ok || bad "half a triplet"
for id in far swapped nan; do
    grep -q "\"id\":\"$id\".*\"format\":1,\"answer\":0," "$dir/out" && ok || bad "reward-check pays for the box \"$id\""
done
grep -q '"id":"open".*"status":"UNCLOSED".*"answer":null.*"format":0,"answer":0,' "$dir/out" && ok || bad "no end, no reward"
grep -q '"id":"long".*"status":"TOO_LONG".*"total":0}' "$dir/out" && ok || bad "a megabyte is worth nothing"
[ "$rc" -eq 0 ] && [ "$(wc -l <"$dir/out")" -eq 6 ] && ok || bad "a line for each completion"
grep -q 'E-NU-10: .*"answer": expected' "$dir/err" && ok || bad "an answer term that is 0 everywhere is not warned of"
run reward-check "$dir/hostile.jsonl" --preset surgery-r1 --weight language=2 --quiet
[ "$rc" -eq 0 ] && grep -q '"grounding":0,' "$dir/out" && ! grep -q '"structure"' "$dir/out" && ok || bad "--preset surgery-r1"
echo '{"id":"a","task":"phase","answer":"x"}' >"$dir/bad.jsonl"
refuses 3 E-DS-02 reward-check "$dir/bad.jsonl"
run reward-check "$dir/bad.jsonl" --on-bad-line skip
[ "$rc" -eq 0 ] && [ ! -s "$dir/out" ] && grep -aqE "$form" "$dir/err" && ok || bad "--on-bad-line skip"
refuses 2 E-CL-01 reward-check "$dir/hostile.jsonl" --weight answers=1
refuses 3 E-DS-02 reward-check "$dir/hostile.jsonl" --max-tokens 100
refuses 4 E-IO-01 reward-check "$dir/nothing.jsonl"

# --- output that cannot be written -------------------------------------------------------------------------------------------
if [ -w /dev/full ]; then
    "$surgr1" limits >/dev/full 2>"$dir/err"
    [ $? -eq 5 ] && grep -aqE "$form" "$dir/err" && ok || bad "a full disk is not told"
    "$surgr1" ask $plain q >/dev/full 2>"$dir/err"
    [ $? -eq 5 ] && ok || bad "an answer that cannot be written is not told"
else
    skipped=$((skipped + 1))
    echo "skip /dev/full is not here"
fi
(
    "$surgr1" limits 2>"$dir/err"
    echo $? >"$dir/rc"
) | true
sleep 0.1
[ "$(cat "$dir/rc")" -eq 5 ] || [ "$(cat "$dir/rc")" -eq 0 ] && ok || bad "a closed pipe ends the program with $(cat "$dir/rc")"

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
