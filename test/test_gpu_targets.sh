#!/bin/sh
# test_gpu_targets.sh - what the GPU targets say where there is nothing to run them on, and what the table of registers reads.
#
# Whoever runs `make test-gpu` without a GPU must not take it for a pass; and a spill must be seen in the output of any nvcc.
# Needs neither nvcc nor a GPU. The last line counts.
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAIL $*"
    sed 's/^/    /' "$dir/out" | head -n 5
}
# What ptxas of CUDA 12 and of 13 say of one kernel each, the second with spills; c++filt may be absent.
cat >"$dir/log" <<'END'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z14swiglu_kernel3MatS_S_' for 'sm_80'
ptxas info    : Function properties for _Z14swiglu_kernel3MatS_S_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 19 registers, 4096 bytes smem, 472 bytes cmem[0]
END
cp "$dir/log" "$dir/spills"
cat >>"$dir/spills" <<'END'
ptxas info    : Compiling entry function '_Z17matmul_mma_kernelIL6Layout1EEv3MatS1_S1_lff' for 'sm_90'
ptxas info    : Function properties for _Z17matmul_mma_kernelIL6Layout1EEv3MatS1_S1_lff
    88 bytes stack frame, 40 bytes spill stores, 48 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 88 bytes cumulative stack size, 520 bytes cmem[0]
ptxas info    : Compile time = 32.002 ms
END
if sh test/gpu_resources.sh "$dir/log" >"$dir/out" && grep -q 'sm_80 *19 *0 *0 *4096$' "$dir/out" && grep -q '1 lines, none spills' "$dir/out"; then ok; else bad "a kernel without spills"; fi
if sh test/gpu_resources.sh "$dir/spills" >"$dir/out"; then bad "a spill was not refused"; else ok; fi
if grep -q 'sm_90 *255 *88 *88 *0 *<- spills' "$dir/out" && grep -q '1 of 2 lines SPILL' "$dir/out"; then ok; else bad "a spill is not marked"; fi
if command -v c++filt >/dev/null; then grep -q '^matmul_mma_kernel<1> ' "$dir/out" && ok || bad "no readable name"; fi
: >"$dir/empty"
if sh test/gpu_resources.sh "$dir/empty" >"$dir/out" 2>&1; then bad "no kernel at all was taken for none that spills"; else ok; fi
if sh test/gpu_resources.sh "$dir/none" >"$dir/out" 2>&1; then bad "no log was taken for none that spills"; else ok; fi

# Without nvcc every GPU target fails and says why.
for target in cuda test-gpu test-gpu-memcheck test-gpu-racecheck test-gpu-initcheck test-gpu-synccheck bench-gpu; do
    if make NVCC= EMU= CUDA= $target >"$dir/out" 2>&1; then bad "make $target passes without nvcc"; else
        grep -q 'nvcc is not there' "$dir/out" && ok || bad "make $target does not say what is missing"
    fi
done
# With everything built and no device, so does the program that they ask first.
if CUDA_VISIBLE_DEVICES= "${GPU_DEVICE:-build/test/gpu_device}" >"$dir/out" 2>&1; then bad "a device was found where none is visible"; else
    [ $? -eq 77 ] && grep -qi 'no cuda' "$dir/out" && ok || bad "no reason is given"
fi
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
