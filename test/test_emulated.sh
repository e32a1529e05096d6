#!/bin/sh
# test_emulated.sh - every command that takes --device does its work on "cuda": the shipped program, its kernels emulated.
#
# SURGR1_EMULATED names the program (make EMU=1 makes build-emu/surgr1; one made for a GPU does too). In fp32 it must say what the host says; each run
# is made again under a hostile schedule (SURGR1_EMU, see cuda_emu.h) or from the middle, and must leave the same bytes.
# Under make SAN=1 device memory is poisoned for host code, so that a host that follows a device pointer ends here.
surgr1=${SURGR1_EMULATED:-build-emu/surgr1}
ask=test/fixtures/oracle/pipeline/ask
model=$ask/checkpoint
command -v "$surgr1" >/dev/null || {
    echo "FAIL $surgr1 is not there: run make EMU=1"
    exit 1
}
dir=$(mktemp -d -p "${TMPDIR:-$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)}") || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
check() { # WHAT command...
    what=$1
    shift
    if "$@" >"$dir/check" 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $what"
        tail -qn 3 "$dir/err" "$dir/check" 2>/dev/null
    fi
}
run() { # WHAT arguments...: exit 0
    say=$1
    shift
    "$surgr1" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    check "$say (exit $?)" [ $? -eq 0 ]
}
under() { # SCHEDULE WHAT arguments...
    SURGR1_EMU=$1
    export SURGR1_EMU
    shift
    run "$@"
    unset SURGR1_EMU
}
same_run() { # A B: run folders, but for times and what is told of them
    diff -r -x timing.jsonl -x local.json -x tensorboard -x LOCK "$1" "$2"
}
same() { cmp "$1" "$2"; }
# A training, and the same again under another schedule in a folder of the same name (a run remembers its paths).
twice() { # NAME SCHEDULE arguments...
    name=$1 schedule=$2
    shift 2
    run "$name" "$@" --out "$dir/$name"
    mv "$dir/$name" "$dir/$name-first" && under "$schedule" "$name, $schedule" "$@" --out "$dir/$name"
    check "$name: other bytes when $schedule" same_run "$dir/$name-first" "$dir/$name"
}
losses() { grep -o '"loss":[0-9]*\.[0-9]\{3\}' "$1/run.jsonl"; } # to three places
# The run in the folder NAME, from its checkpoint STEP on.
again() { # NAME STEP arguments...
    name=$1 step=$2
    shift 2
    rm -rf "$dir/$name-first" && cp -r "$dir/$name" "$dir/$name-first"
    for c in "$dir/$name"/ckpt/step-*; do [ "${c##*step-}" -le "$step" ] || rm -r "$c"; done
    rm -r "$dir/$name/export"
    under shuffled,late "$name from step $step" "$@" --out "$dir/$name"
    check "$name: other bytes from step $step" same_run "$dir/$name-first" "$dir/$name"
}

# --- the schedule is a word --------------------------------------------------------------------------------------------
if [ "$SURGR1_DEVICE" != cuda ]; then # a real GPU has no such word
    SURGR1_EMU=backwards "$surgr1" --version >/dev/null 2>&1
    check "a schedule that is none" [ $? -eq 2 ]
fi

# --- ask ---------------------------------------------------------------------------------------------------------------
ids() { grep -o '"ids":\[[^]]*\]' "$dir/out" >"$1"; }
for how in "--greedy" "--temperature 0.8 --seed 5"; do
    run "ask on the host" ask --model $model --messages $ask/conversations.jsonl --max-new-tokens 4 $how --dtype f32
    ids "$dir/host"
    under reverse,late "ask" ask --model $model --messages $ask/conversations.jsonl --max-new-tokens 4 $how --dtype f32 --device cuda
    ids "$dir/cuda"
    check "ask $how: other tokens than the host's" same "$dir/host" "$dir/cuda"
done
check "it answered" [ "$(wc -l <"$dir/cuda")" -gt 3 ]
picture="ask --model $model --image $ask/c0_0.png --max-new-tokens 2 --greedy"
run "ask in bf16" $picture --device cuda "What is this?"
run "a trace on the host" $picture --trace "$dir/a" --dtype f32 "What is this?"
run "a trace" $picture --trace "$dir/b" --dtype f32 --device cuda "What is this?"
run "every op agrees" trace-diff "$dir/a" "$dir/b"

# --- sft ---------------------------------------------------------------------------------------------------------------
for said in liver fat hook clip; do
    printf '{"id":"p-%s","messages":[{"role":"user","content":"<image>What is it?"},{"role":"assistant","content":"<answer>%s</answer>"}],"images":["c0_0.png"]}\n' $said $said
    printf '{"id":"t-%s","messages":[{"role":"user","content":"Which tool?"},{"role":"assistant","content":"<think>Level 1: %s</think><answer>%s</answer>"}]}\n' $said $said $said
done >"$dir/train.jsonl"
run "scenes" scenes --out "$dir/scenes" --count 4 --size 64 --brief --per-frame 2 --cells 32 --truth --tasks count,cvs1
sft="sft --model $model --image-root $ask --data $dir/train.jsonl --warmup 1 --device cuda"
lora="$sft --lora decoder,vision,merger --lora-rank 2 --lora-dropout 0.2 --batch 2 --lr 5e-3 --steps 4 --save-every 2"
twice lora-f32 reverse,late $lora --dtype f32 --accumulate 2
run "sft on the host" $lora --dtype f32 --accumulate 2 --device cpu --out "$dir/host-run"
losses "$dir/host-run" >"$dir/host"
losses "$dir/lora-f32" >"$dir/cuda"
check "other losses than the host's" same "$dir/host" "$dir/cuda"
twice lora-bf16 shuffled,early $lora --keep 1 --eval "$dir/train.jsonl" --eval-every 2 --eval-samples 2 --sample-every 3 --sample-tokens 3 --samples 1
again lora-bf16 2 $lora --keep 1 --eval "$dir/train.jsonl" --eval-every 2 --eval-samples 2 --sample-every 3 --sample-tokens 3 --samples 1
full="sft --model $model --data $dir/scenes/train.jsonl --warmup 1 --device cuda --full decoder,vision,merger --group --align 0.5 --batch 2 --lr 1e-3 --steps 3 --save-every 1 --per-answer"
twice full-bf16 reverse,late $full
again full-bf16 1 $full
run "full in f32" $full --dtype f32 --export-dtype bf16 --out "$dir/full-f32"
run "ask of an adapter" ask --model $model --adapter "$dir/lora-bf16/export" --device cuda --greedy --max-new-tokens 2 "Which tool?"

# --- grpo --------------------------------------------------------------------------------------------------------------
run "a cold start, on the host" sft --model $model --image-root $ask --data "$dir/train.jsonl" --full decoder --dtype f32 --lr 3e-3 --steps 60 --out "$dir/cold"
cold=$dir/cold/export
for i in 1 2; do
    printf '{"id":"t%s","task":"tool","answer":"hook","messages":[{"role":"user","content":"Which tool?"}]}\n' $i
    printf '{"id":"p%s","task":"tissue","answer":"liver","messages":[{"role":"user","content":"<image>What is it?"}],"images":["c0_0.png"]}\n' $i
done >"$dir/prompts.jsonl"
grpo="grpo --model $cold --image-root $ask --data $dir/prompts.jsonl --device cuda --prompts 2 --group 3 --gate 0 --task-floor 0 --max-new-tokens 12 --warmup 1 --lr 1e-3"
for preset in surg-r1 surgery-r1 vlm-r1 dapo; do
    under shuffled,late "grpo --preset $preset" $grpo --preset $preset --lora decoder --lora-rank 2 --steps 1 --out "$dir/$preset"
done
trl="$grpo --preset trl --full decoder --updates 2 --epochs-per-rollout 2 --kl 0.02 --sft-coef 0.1 --sft-data $dir/train.jsonl --steps 3 --save-every 1 --keep-every 1"
twice grpo-bf16 shuffled,late $trl
again grpo-bf16 2 $trl
grep -q "in the middle of a rollout" "$dir/err"
check "it went on in the middle of a rollout" [ $? -eq 0 ]
run "grpo in f32" $grpo --dtype f32 --score pass --lora decoder,vision --lora-rank 2 --steps 2 --out "$dir/grpo-f32"

# --- eval, refine, run -------------------------------------------------------------------------------------------------
sed 's/^{/{"split":"test",/' "$dir/prompts.jsonl" >"$dir/questions.jsonl"
for device in cpu cuda; do
    run "eval on $device" eval --model $cold --image-root $ask --data "$dir/prompts.jsonl" --out "$dir/eval-$device" --device $device --dtype f32 --resamples 10 --max-new-tokens 20
done
check "eval: other answers than the host's" same "$dir/eval-cpu/predictions.jsonl" "$dir/eval-cuda/predictions.jsonl"
under reverse,late "refine" refine --model $model --data "$dir/scenes/train.jsonl" --out "$dir/refined" --brief --teacher scene --limit 4 --rollouts 2 --max-new-tokens 4 \
    --device cuda -- --lora decoder --lora-rank 2 --steps 2 --batch 2
check "refine trained" [ -s "$dir/refined/iter-1/sft/export/adapter_model.safetensors" ]
cat >"$dir/recipe.json" <<END
{"format":1,"name":"tiny","variables":{"out":"$dir/recipe"},"stages":[
 {"name":"train","command":"sft","options":{"model":"$model","image-root":"$ask","data":"$dir/train.jsonl","out":"{out}/train","lora":"decoder","lora-rank":2,"steps":1,"batch":2,"device":"cuda"},"seconds":1},
 {"name":"test","command":"eval","options":{"model":"$cold","image-root":"$ask","data":"$dir/prompts.jsonl","out":"{out}/eval","resamples":10,"max-new-tokens":4,"device":"cuda"},"seconds":1}]}
END
run "a recipe" run "$dir/recipe.json"
echo "test_emulated.sh: $passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
