r"""Checks what surgr1 writes with the libraries that have to read it: PEFT opens saved adapters, transformers opens
written checkpoints, and both give the same logits.

    python3 -m venv /tmp/reference
    /tmp/reference/bin/pip install -r test/reference/requirements.txt peft==0.17.1
    SURGR1_LORA_OUT=/tmp/lora_out build/test/test_lora    # writes the folders (the path must be new)
    /tmp/reference/bin/python test/reference/check_adapter.py /tmp/lora_out test/fixtures/oracle/models \
        ../shared/oracle/models

What it is:     a check during development; the tests need no Python. For each MODEL-NAME-new that test_lora kept it
                compares the logits of three ways to the same model: base + PEFT's adapter, MODEL-NAME-merged opened by
                transformers where there is one, and for a stored adapter the logits that lie beside it. PEFT must hold
                every tensor of the file and miss none. The older layout must hold the same under its own keys. Every
                checkpoint folder must open without a missing or unexpected key.
What it is not: a test of surgr1's forward pass (test/test_oracle.c).
"""
import json, os, sys, warnings

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

torch.set_num_threads(2)


def open_model(folder, **more):
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    text = json.load(open(f"{folder}/config.json")).get("text_config", {})
    if "rope_parameters" in text:  # the spelling of transformers 5, which this release does not read
        rope = dict(text["rope_parameters"])
        config.text_config.rope_theta = rope.pop("rope_theta")
        config.text_config.rope_scaling = rope
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32,
                                                              attn_implementation="eager", **more)


def inputs_of(folder, case=None):
    """A stored case of the model: the first with pictures, or the one of this name."""
    cases = json.load(open(f"{folder}/index.json"))["cases"]
    case = case or next((c for c in cases if c["images"]), cases[0])["name"]
    t = load_file(f"{folder}/{case}.safetensors")
    kw = dict(input_ids=t["input_ids"].reshape(1, -1).long())
    kw["attention_mask"] = torch.ones_like(kw["input_ids"])
    if "pixel_values" in t:
        kw.update(pixel_values=t["pixel_values"], image_grid_thw=t["image_grid_thw"].long())
    return kw


def logits(model, kw):
    model.eval()
    with torch.no_grad():
        return model(**kw, use_cache=False).logits[0].double()


def distance(a, b):
    return float((a - b).norm() / b.norm())


def check(out, models, name):
    """One adapter that test_lora saved: returns how many things were wrong."""
    model, rest = name.split("-", 1)
    folder = next(f"{m}/{model}" for m in models if os.path.isdir(f"{m}/{model}"))
    base = f"{folder}/checkpoint"
    kw = inputs_of(folder)
    adapter = load_file(f"{out}/{name}-new/adapter_model.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft = PeftModel.from_pretrained(open_model(base), f"{out}/{name}-new")
    wrong = [str(w.message) for w in caught if "adapter keys" in str(w.message)]  # missing or unexpected
    seen = get_peft_model_state_dict(peft)
    if set(seen) != set(adapter) or any(not torch.equal(seen[k].float(), adapter[k].float()) for k in adapter):
        wrong.append(f"PEFT holds {len(seen)} tensors, the file {len(adapter)}: {sorted(set(seen) ^ set(adapter))[:4]}")
    active = logits(peft, kw)
    text = f"{name}: {len(adapter)} tensors"
    change = distance(active, logits(open_model(base), kw))
    if not change > 1e-4:
        wrong.append(f"the adapter changes logits by {change:.1e} only")
    merged = f"{out}/{name}-merged"
    if os.path.isdir(merged):
        d = distance(logits(open_model(merged), kw), active)
        text += f", merged differs by {d:.1e}"
        if not d < 1e-5:
            wrong.append("the merged checkpoint is another model")
    stored = f"{folder}/{rest}/gradients.safetensors"
    if os.path.isfile(stored):
        info = next(a for a in json.load(open(f"{folder}/index.json"))["lora"] if a["name"] == rest)
        d = distance(logits(peft, inputs_of(folder, info["logits_case"])), load_file(stored)["logits"].double())
        text += f", stored logits differ by {d:.1e}"
        if not d < 1e-5:
            wrong.append("the logits are not the stored ones")
    old = load_file(f"{out}/{name}-old/adapter_model.safetensors")
    renamed = {k.replace("base_model.model.visual.", "base_model.model.model.visual.")
                .replace("base_model.model.model.", "base_model.model.model.language_model.")
                .replace(".language_model.visual.", ".visual."): v for k, v in old.items()}
    if set(renamed) != set(adapter) or any(not torch.equal(renamed[k], adapter[k]) for k in adapter):
        wrong.append("the older key layout holds other tensors")
    print(text, "ok" if not wrong else "WRONG: " + "; ".join(wrong), flush=True)
    return len(wrong)


def check_checkpoint(folder):
    """Opens a written checkpoint; the values are those of its files. Returns how many things were wrong."""
    model, info = open_model(folder, output_loading_info=True)
    keys = {k: sorted(v)[:4] for k, v in info.items() if v}
    values = {}
    for f in os.listdir(folder):
        if f.endswith(".safetensors"):
            values.update(load_file(f"{folder}/{f}"))
    renamed = {k if k.startswith(("model.visual.", "model.language_model.", "lm_head.")) else
               "model." + k if k.startswith("visual.") else k.replace("model.", "model.language_model.", 1): v
               for k, v in values.items()}
    state = model.state_dict()
    if "lm_head.weight" not in renamed:
        state.pop("lm_head.weight")
    same = set(state) == set(renamed) and all(torch.equal(state[k], renamed[k].float()) for k in state)
    bad = bool(keys) + (not same)
    verdict = f"WRONG: {keys}, same values {same}" if bad else "ok"
    print(f"{os.path.basename(folder)}: {len(values)} tensors {verdict}", flush=True)
    return bad


def main(out, *models):
    names = sorted(f[:-4] for f in os.listdir(out) if f.endswith("-new") and f"{f[:-4]}-old" in os.listdir(out))
    names = [n for n in names if n != "targets"]
    checkpoints = sorted(f for f in os.listdir(out) if os.path.isfile(f"{out}/{f}/config.json"))
    wrong = sum(check(out, models, n) for n in names) + sum(check_checkpoint(f"{out}/{f}") for f in checkpoints)
    print(f"{len(names)} adapters, {len(checkpoints)} checkpoints, {wrong} wrong")
    return 1 if wrong or not names or not checkpoints else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
