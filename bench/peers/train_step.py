"""The same training step as bench_train.c in PyTorch eager with transformers, for it to compare itself with.

    train_step.py DIR THREADS      DIR: a checkpoint with bench_samples.safetensors; bench_train starts this

It first tries what a PyTorch user can choose - attention (eager, sdpa), a padded batch or one packed row under a
block-diagonal mask, logits of every token or of the targets only, AdamW in its default form or fused - and keeps the fastest.
Then it puts the first weights back, writes "ready NAME", and answers every line "step" with "SECONDS CPU_SECONDS LOSS NORM" of one more
step. Positions, masks and padded tensors are made once, outside the timed part.
"""
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.utils import logging
except ImportError as e:
    print(f"missing {e}", flush=True)
    sys.exit(0)

logging.set_verbosity_error()


def samples(model, folder):
    """Both packings of the samples: keyword arguments of the model, and labels shifted to the row that predicts them."""
    s = load_file(f"{folder}/bench_samples.safetensors")
    lengths, grids = s["lengths"].tolist(), s["grids"].long()
    ids, trained = s["ids"].long().split(lengths), s["trained"].bool().split(lengths)
    labels = []
    for i, t in zip(ids, trained):
        shifted = torch.full_like(i, -100)
        shifted[:-1] = torch.where(t[1:], i[1:], -100)
        labels.append(shifted)
    pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    pictures = {"pixel_values": s["pixels"], "image_grid_thw": grids}
    mask = pad([torch.ones_like(i) for i in ids], 0)
    padded = {"input_ids": pad(ids, 0), "attention_mask": mask, **pictures}
    positions, _ = model.model.get_rope_index(padded["input_ids"], grids, attention_mask=mask)
    padded["position_ids"] = positions
    which = torch.cat([torch.full_like(i, k) for k, i in enumerate(ids)])
    n = len(which)
    allowed = (which[:, None] == which[None, :]) & torch.ones(n, n, dtype=torch.bool).tril()
    bias = torch.zeros(n, n).masked_fill(~allowed, torch.finfo(torch.float32).min)
    packed = {
        "input_ids": torch.cat(ids)[None],
        "attention_mask": bias[None, None],
        "position_ids": torch.cat([positions[:, k, :l] for k, l in enumerate(lengths)], 1)[:, None],
        **pictures,
    }
    return {"padded": (padded, pad(labels, -100)), "packed": (packed, torch.cat(labels)[None])}


class Step:
    def __init__(self, model, first, inputs, name):
        self.model, self.name = model, name
        attention, packing, rows, form = name
        model.load_state_dict(first)
        model.set_attn_implementation(attention)
        self.inputs, self.labels = inputs[packing]
        self.targets_only = rows == "targets"
        decayed = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True if form == "fused" else None)

    def __call__(self):
        started, cpu = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        x = self.model.model(**self.inputs, use_cache=False).last_hidden_state
        labels = self.labels
        if self.targets_only:
            x, labels = x[labels >= 0], labels[labels >= 0]
        logits = self.model.lm_head(x)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        loss, norm = loss.item(), norm.item()
        return time.perf_counter() - started, time.process_time() - cpu, loss, norm


def main():
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    first = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = samples(model, folder)

    def measure(name):
        step = Step(model, first, inputs, name)
        step()
        times = [step()[:2] for _ in range(3)]
        wall, cpu = (sorted(column)[1] for column in zip(*times))
        print(f"  PyTorch {torch.__version__}, {', '.join(name):34} {1e3 * wall:8.1f} ms ({1e3 * cpu:8.1f} of processor)",
              file=sys.stderr, flush=True)
        return wall, name

    best = min(measure((a, p, "all", "default")) for a in ("eager", "sdpa") for p in ("padded", "packed"))
    best = min(best, measure((*best[1][:2], "targets", "default")))
    best = min(best, measure((*best[1][:3], "fused")))
    step = Step(model, first, inputs, best[1])
    print(f"ready {', '.join(best[1])}", flush=True)
    for line in sys.stdin:
        print("%.6f %.6f %.8f %.8f" % step(), flush=True)


main()
