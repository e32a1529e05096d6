"""The same LoRA step and the same answers as bench_gpu.c by transformers and PEFT, for it to compare itself with.

    gpu_step.py DIR ADAPTER      DIR: a checkpoint with bench_samples.safetensors; bench_gpu starts this

In bf16 on the GPU (without one in fp32 on the processor: then times mean nothing). It first tries what a user can choose -
attention (sdpa, flash_attention_2 where it is installed), logits of every token or of the targets only, AdamW in its default form
or fused, and at last checkpointing of blocks, alone when nothing else fits - and keeps the fastest. Then it puts the first adapter
back, writes "ready NAME", and answers every line:

    step               "SECONDS CPU_SECONDS LOSS NORM" of one more step
    decode ROWS NEW    "SECONDS_OF_ONE SECONDS_OF_ALL 0 0": generate() of ROWS answers to the first sample, of 1 and of NEW + 1 tokens

Positions, masks and padded tensors are made once, outside the timed part. Sequences are of equal length, so nothing is padded.
"""
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.utils import is_flash_attn_2_available, logging
except ImportError as e:
    print(f"missing {e}", flush=True)
    sys.exit(0)

logging.set_verbosity_error()
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32


def wait():
    if device == "cuda":
        torch.cuda.synchronize()


def samples(base, folder):
    """Keyword arguments of the model, labels shifted to the row that predicts them, and the same of the first sample alone."""
    s = {k: v.to(device) for k, v in load_file(f"{folder}/bench_samples.safetensors").items()}
    n = len(s["lengths"])
    ids, trained, grids = s["ids"].long().view(n, -1), s["trained"].bool().view(n, -1), s["grids"].long()
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = torch.where(trained[:, 1:], ids[:, 1:], -100)
    first = {"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])}
    inputs = {"input_ids": ids}
    if len(s["pixels"]):
        inputs |= {"pixel_values": s["pixels"], "image_grid_thw": grids}
        first |= {"pixel_values": s["pixels"][: int(grids[0].prod())], "image_grid_thw": grids[:1]}
    positions, _ = base.model.get_rope_index(ids, inputs.get("image_grid_thw"), attention_mask=torch.ones_like(ids))
    inputs["position_ids"] = positions
    return inputs, labels, first


class Step:
    def __init__(self, model, start, inputs, labels, name):
        self.model, self.inputs, self.labels, self.name = model, inputs, labels, name
        attention, rows, form, blocks = name
        model.load_state_dict(start, strict=False)
        base = model.get_base_model()
        base.set_attn_implementation(attention)
        if blocks == "checkpointed":
            base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        self.base, self.targets_only = base, rows == "targets"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01, fused=True if form == "fused" else None)
        model.train()

    def __call__(self):
        wait()
        started, cpu = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        x = self.base.model(**self.inputs, use_cache=False).last_hidden_state
        labels = self.labels
        if self.targets_only:
            x, labels = x[labels >= 0], labels[labels >= 0]
        logits = self.base.lm_head(x).float()
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        loss, norm = loss.item(), norm.item()
        wait()
        return time.perf_counter() - started, time.process_time() - cpu, loss, norm


def decode(model, first, rows, new):
    model.eval()
    many = {k: v.repeat(rows, *[1] * (v.dim() - 1)) for k, v in first.items()}
    seconds = []
    for tokens in (1, new + 1):
        wait()
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(**many, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, repetition_penalty=1.0,
                           temperature=None, top_p=None, top_k=None)
        wait()
        seconds.append(time.perf_counter() - started)
    model.train()
    return (*seconds, 0, 0)


def main():
    folder, adapter = sys.argv[1:3]
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device)
    inputs, labels, first = samples(base, folder)
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True, autocast_adapter_dtype=True)
    start = {k: v.clone() for k, v in model.state_dict().items() if "lora_" in k}
    inputs = {k: v.to(dtype) if k == "pixel_values" else v for k, v in inputs.items()}

    def measure(*name):
        try:
            step = Step(model, start, inputs, labels, name)
            step()
            wall = sorted(step()[0] for _ in range(3))[1]
        except torch.OutOfMemoryError:
            wall = float("inf")
        step = None
        if device == "cuda":
            torch.cuda.empty_cache()
        print(f"  PyTorch {torch.__version__}, {', '.join(name):44} {1e3 * wall:10.1f} ms", file=sys.stderr, flush=True)
        return wall, name

    attentions = ["sdpa"] + (["flash_attention_2"] if device == "cuda" and is_flash_attn_2_available() else [])
    best = min(measure(a, "targets", "default", blocks) for a in attentions for blocks in ("kept", "checkpointed"))
    if best[0] < float("inf"):
        best = min(best, measure(best[1][0], "all", *best[1][2:]), measure(*best[1][:2], "fused", best[1][3]))
    if best[0] == float("inf"):
        print("missing memory: no form of the step fits beside ours", flush=True)
        return
    step = Step(model, start, inputs, labels, best[1])
    print(f"ready {torch.__version__}, {', '.join(best[1])}", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "decode":
            step.base.gradient_checkpointing_disable()
            answer = decode(model, first, int(words[1]), int(words[2]))
        else:
            answer = step()
        print("%.6f %.6f %.8f %.8f" % answer, flush=True)


main()
