"""Makes test/fixtures: what other people's software computes, small enough to be committed.

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install -r test/reference/requirements.txt
    /tmp/reference/bin/python test/reference/make_fixtures.py test/fixtures

What it is:     one function per kind of fixture. transformers, PEFT, tokenizers, torch and Pillow compute every
                expected value; this file only chooses inputs and writes down what comes out. Same versions on the same
                kind of processor, same bytes; on another one floats differ in their last bits.
What it is not: a model. No formula of Qwen2.5-VL stands here: nothing can be wrong in the same way as the C code.
Read before:    test/fixtures/README.md (what each file holds).  Read after: test/test_oracle.c (who compares).
"""
import argparse, copy, hashlib, io, json, math, os, random, shutil, struct, zlib

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np
import peft
import PIL
import safetensors
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor,
                          Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor,
                          get_cosine_schedule_with_warmup)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

BASE_TOKENS = 480  # byte-level BPE tokens before the added ones
# The added tokens of Qwen2.5 in order, with their flag "special" (dropped by skip_special_tokens).
SPECIAL = ("endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end "
           "vision_start vision_end vision_pad image_pad video_pad")
ADDED = [(f"<|{n}|>", True) for n in SPECIAL.split()] + [("<tool_call>", False), ("</tool_call>", False)]
ADDED += [(f"<|{n}|>", False) for n in "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()]
ADDED_ID = {text: BASE_TOKENS + k for k, (text, _) in enumerate(ADDED)}
VOCAB = 512  # BASE_TOKENS + 22, rounded up: the last rows have weights but no token, as in the published checkpoints


def token_id(text, vocab=VOCAB):
    """The id of an added token in a model whose vocabulary is so large: the added tokens have the last 32 ids."""
    return ADDED_ID[text] - VOCAB + vocab


QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Renders what the published Qwen2.5-VL template renders for text and pictures (compared with it on 10,000 random
# conversations).
CHAT_TEMPLATE = """{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system\n{{ 'You are a helpful assistant.' }}<|im_end|>{{ '\n' }}
{%- endif -%}
{%- for m in messages -%}
<|im_start|>{{ m['role'] + '\n' }}
{%- if m['content'] is string -%}{{ m['content'] }}
{%- else -%}
{%- for part in m['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"""

# Three small models. Sizes differ from each other and from round numbers on purpose: three query heads per key head,
# head size 24 with unequal rotary sections, an MLP width that no vector length divides, windows of 3x3 units that
# pictures do not fill. "learner" is the one that is trained: all its weights together must be small, for they are
# stored several times over.
LINEAR = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|attn.qkv|attn.proj|merger.mlp.[02])$"
MODELS = {
    "thirds": dict(
        seed=2101, store=torch.bfloat16, renamed=True, nested=True, pixels=(576, 3456), mrope=[3, 4, 5],
        text=dict(hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=3,
                  num_key_value_heads=1, rope_theta=500000.0, rms_norm_eps=1e-6, tie_word_embeddings=True),
        vision=dict(depth=3, hidden_size=48, intermediate_size=68, num_heads=2, patch_size=6, window_size=36,
                    fullatt_block_indexes=[1]),
        cases=[("text", [], [19]),  # name, sizes of the pictures, layout: so many tokens of text, "I" for a picture
               ("partial_windows", [(58, 47)], [4, "I", 9]),
               ("two_images", [(29, 33), (71, 26)], ["I", 5, "I", 7]),
               ("adjacent_images", [(23, 25), (36, 37)], [2, "I", "I", 6])]),
    "learner": dict(
        seed=2306, store=torch.float16, renamed=False, nested=False, pixels=(128, 1024), mrope=[1, 1, 2], vocab=64,
        text=dict(hidden_size=24, intermediate_size=22, num_hidden_layers=2, num_attention_heads=3,
                  num_key_value_heads=1, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True),
        vision=dict(depth=2, hidden_size=12, intermediate_size=17, num_heads=3, patch_size=4, window_size=16,
                    fullatt_block_indexes=[0]),
        cases=[("text", [], [11]), ("image", [(18, 25)], [3, "I", 7]),
               ("two_images", [(24, 7), (13, 12)], [1, "I", 4, "I", 5])],
        # An update on text alone comes between two with pictures: torch then leaves the vision tower's weights and
        # their moments alone, and counts no step for them. Decay is on everywhere: it must not reach vectors.
        train=dict(batch=["image", "text"], batches=[["image", "text"], ["text"], ["two_images", "text"]],
                   full=dict(lr=0.002, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0, warmup=2, steps=9),
                   lora=dict(lr=0.004, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05, clip=0.5, warmup=2,
                             steps=9)),
        adapters=[
            # name, keys of the old module tree, batch of the stored gradients, PEFT's options
            ("lora_old_rslora", True, ["image", "text"], dict(
                r=2, lora_alpha=5, use_rslora=True, target_modules=LINEAR, rank_pattern={"attn.proj": 3, "o_proj": 1})),
            # A key is an expression behind an optional path: a dot is any character, ^ holds it to the whole path, and
            # the first key that fits wins (the second of them never hits merger.mlp.0).
            ("lora_patterns", False, ["two_images"], dict(
                r=2, lora_alpha=3, target_modules=LINEAR,
                rank_pattern={"^model.visual.merger.mlp.0": 5, "mlp.0": 7, "layers.1.self_attn.q_proj": 1,
                              "blocks.0.*_proj": 3, "^v_proj": 9},
                alpha_pattern={"attn.qkv": 3, "^model.language_model.layers.0.mlp.down_proj": 8, "down_proj": 4})),
            # "norm" is the end of all three kinds of the decoder's norms. On text alone the merger has no gradient.
            ("lora_saved", False, ["text"], dict(
                r=3, lora_alpha=4, target_modules=".*language_model.*(k_proj|v_proj|o_proj)$",
                modules_to_save=["merger", "norm"])),
        ]),
    "ask": dict(
        seed=2202, store=torch.bfloat16, renamed=False, nested=False, pixels=(3136, 28 * 28 * 10), mrope=[1, 1, 2],
        text=dict(hidden_size=48, intermediate_size=60, num_hidden_layers=2, num_attention_heads=6,
                  num_key_value_heads=2, rope_theta=1000000.0, rms_norm_eps=1e-6, tie_word_embeddings=False),
        vision=dict(depth=2, hidden_size=32, intermediate_size=44, num_heads=2, patch_size=14, window_size=112,
                    fullatt_block_indexes=[1])),
}
NEW_TOKENS = 12
SMALLEST_GAP = 5e-3  # between first and second choice in a stored greedy continuation: rounding must not decide it


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        f.write(text)


def write_json(path, value):
    write(path, json.dumps(value, indent=1))


def write_jsonl(path, rows):
    write(path, "".join(json.dumps(r) + "\n" for r in rows))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def picture(rng, width, height):
    """Smooth colours, two rectangles with hard edges and a little noise, as RGB."""
    y, x = np.mgrid[0:height, 0:width]
    a = np.stack([127 + 100 * np.sin(x / rng.uniform(5, 30) + y / rng.uniform(5, 30) + c) for c in range(3)], -1)
    for _ in range(2):
        left, top = rng.integers(0, width), rng.integers(0, height)
        a[top:top + rng.integers(2, 20), left:left + rng.integers(2, 20)] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(a + rng.normal(0, 2, a.shape), 0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------------ tokenizer
def surgical_text(rng):
    """Sentences to train the small vocabulary on."""
    tools = "grasper hook clipper scissors bipolar irrigator".split()
    doings = "retracts dissects coagulates clips cuts aspirates grasps packs".split()
    organs = ["gallbladder", "cystic duct", "cystic artery", "liver", "omentum", "peritoneum", "gut", "cystic plate"]
    forms = [
        "The {t} {d} the {o}.", "Is the {o} in view? Yes.", "phase {n}: calot triangle dissection\n",
        "<box>({n}, {n})</box> {t}", "The surgeon {d} the {o} with the {t}; it isn't clipped yet.\n\n", "{t}, {d}, {o}",
        "You are a helpful assistant.", "Which instrument is in use, and what changed between these frames?",
        "<think>\nLevel {n}: perception, relation, reasoning.\n</think>"
    ]
    return [
        rng.choice(forms).format(t=rng.choice(tools), d=rng.choice(doings), o=rng.choice(organs), n=rng.randint(0, 999))
        for _ in range(2000)
    ]


def make_tokenizer(out, seed):
    """Trains the vocabulary, writes tokenizer/ and oracle/pipeline/small_bpe/, returns the transformers tokenizer."""
    rng = random.Random(seed)
    text = surgical_text(rng)
    tk = Tokenizer(models.BPE())
    tk.normalizer = normalizers.NFC()
    tk.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ])
    tk.decoder = decoders.ByteLevel()
    tk.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=BASE_TOKENS, show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tk.get_vocab_size() == BASE_TOKENS
    folder = f"{out}/tokenizer"
    os.makedirs(folder)
    tk.model.save(folder)
    fast = Qwen2TokenizerFast(vocab_file=f"{folder}/vocab.json", merges_file=f"{folder}/merges.txt", unk_token=None,
                              bos_token=None, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
                              chat_template=CHAT_TEMPLATE)
    for token, special in ADDED:
        fast.add_tokens([AddedToken(token, normalized=False, special=special)], special_tokens=special)
        assert fast.convert_tokens_to_ids(token) == ADDED_ID[token]
    fast.eos_token = "<|im_end|>"
    plain = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    write_json(f"{folder}/tokenizer_config.json", dict(
        tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        added_tokens_decoder={str(ADDED_ID[t]): dict(content=t, special=s, **plain) for t, s in ADDED}))
    b = fast.backend_tokenizer

    def encode_case(s):
        ids = b.encode(s, add_special_tokens=False).ids
        row = dict(text=s, ids=ids, decoded=b.decode(ids, skip_special_tokens=False))
        skipped = b.decode(ids, skip_special_tokens=True)
        return row if skipped == row["decoded"] else {**row, "decoded_skip_special": skipped}

    edges = [
        "", " ", "   ", "a", "I'LL they'Re isn't 'Sir", "x\r\n\r\n  y", "tabs\t\tand  two spaces ", "12345 ½ ² Ⅷ ٣",
        "Où est la vésicule ?", "胆囊在哪里？", "e\u0301 is one letter after NFC: \u1100\u1161\u11a8", "🙂👍🏽",
        "<|im_start|>user\n<|im_end|>", "<|im_start<|im_end|>|>", "<tool_call></tool_call>\n", "!!!\n\n?",
        "\u00a0\u2003 wide spaces", "nul\u0000and del\u007f", "don\u2019t", "'\u017f long s",
        "a<|image_pad|><|image_pad|>b", "   \n  trailing  \n ", "\u0e19\u0e49\u0e33 marks",
        "<|endoftext|><|endoftext|>", "\ufeffbom", "\ufffd"
    ]
    alphabet = list("aeio rtsn'.,?!\n\t 019<|>") + [
        "é", "ß", "中", "🙂", "\u0301", "\u00a0", "\r\n", " the", "<|im_end|>", "cystic"
    ]
    mixed = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(60)]
    write_jsonl(f"{folder}/cases_generated.jsonl", [encode_case(s) for s in edges + rng.sample(text, 40) + mixed])
    rows = []
    for _ in range(50):  # random ids: broken UTF-8, ids without a token
        ids = [rng.randrange(VOCAB + 20) for _ in range(rng.randint(0, 16))]
        rows.append(dict(ids=ids, decoded=b.decode(ids, skip_special_tokens=False),
                         decoded_skip_special=b.decode(ids, skip_special_tokens=True)))
    write_jsonl(f"{folder}/cases_decode.jsonl", rows)
    # The same base vocabulary with other added tokens, in one file.
    tk.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tk.add_tokens(["<think>", "</think>"])
    small = f"{out}/oracle/pipeline/small_bpe"
    os.makedirs(small)
    tk.save(f"{small}/tokenizer.json", pretty=False)
    joints, rows = ["", "<think>", "</think>\n", " é中🙂", "<|im_end|>", "e\u0301"], []
    for _ in range(40):
        s = rng.choice(text) + rng.choice(joints) + rng.choice(text)
        ids = tk.encode(s).ids
        rows.append(dict(text=s, ids=ids, decoded=tk.decode(ids, skip_special_tokens=False)))
    write_jsonl(f"{small}/cases.jsonl", rows)
    return fast


# --------------------------------------------------------------------------------------------------------------- models
def original(name):
    """The name of a parameter in the published checkpoints: "visual.X" or "model.X"."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def make_checkpoint(spec, folder):
    """A random model, rounded to the stored type, and its checkpoint folder, which is read back and compared."""
    vocab = spec.get("vocab", VOCAB)
    token = {f"{n}_id": token_id(f"<|{t}|>", vocab)
             for n, t in (("image_token", "image_pad"), ("video_token", "video_pad"),
                          ("vision_start_token", "vision_start"), ("vision_end_token", "vision_end"))}
    kind = {"rope_type": "default", "type": "default"} if spec["nested"] else {"type": "mrope"}
    text = dict(spec["text"], vocab_size=vocab, max_position_embeddings=2048, hidden_act="silu",
                use_sliding_window=False, attention_dropout=0.0, bos_token_id=token_id("<|endoftext|>", vocab),
                eos_token_id=token_id("<|im_end|>", vocab), rope_scaling={"mrope_section": spec["mrope"], **kind})
    vision = dict(spec["vision"], in_channels=3, spatial_merge_size=2, temporal_patch_size=2, tokens_per_second=2,
                  hidden_act="silu", out_hidden_size=text["hidden_size"])
    tied = text["tie_word_embeddings"]
    config = Qwen2_5_VLConfig(text_config=copy.deepcopy(text), vision_config=dict(vision), tie_word_embeddings=tied,
                              **token)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.float32,
                                                            attn_implementation="eager").eval()
    g = torch.Generator().manual_seed(spec["seed"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if name.endswith("bias"):
                r = 0.2 * r
            elif p.ndim == 1:
                r = 1 + 0.2 * r
            elif "embed_tokens" in name:
                r = (0.3 if tied else 1.0) * r  # a large tied embedding would make every answer repeat its last token
            elif "patch_embed" in name:
                r = 0.2 * r / math.sqrt(p[0].numel())  # small rows: a wrong eps in the first norm must show
            else:
                r = 1.2 * r / math.sqrt(p[0].numel())
            p.copy_(r.to(spec["store"]).float())
    os.makedirs(folder)
    state = {}
    for name, p in model.named_parameters():
        state[name if spec["renamed"] else original(name)] = p.detach().to(spec["store"]).contiguous()
    save_file(state, f"{folder}/model.safetensors", {"format": "pt"})
    written = dict(architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl",
                   dtype=str(spec["store"])[6:], **token)
    if spec["nested"]:
        written.update(tie_word_embeddings=tied, text_config=dict(text, model_type="qwen2_5_vl_text"),
                       vision_config=dict(vision, model_type="qwen2_5_vl"))
    else:
        vision["in_chans"] = vision.pop("in_channels")
        written.update(text, vision_config=vision)
    write_json(f"{folder}/config.json", written)
    write_json(f"{folder}/preprocessor_config.json", dict(
        image_processor_type="Qwen2VLImageProcessor", min_pixels=spec["pixels"][0], max_pixels=spec["pixels"][1],
        patch_size=vision["patch_size"], temporal_patch_size=2, merge_size=2,
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711]))
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for (n, p), (_, q) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p, q), n
    return model, Qwen2VLImageProcessor.from_pretrained(folder)


def greedy(model, inputs):
    """Plain argmax, no penalty, no stop token: ids, logits per step, smallest gap between first and second choice."""
    r = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
                       output_logits=True, return_dict_in_generate=True, pad_token_id=0, eos_token_id=None)
    logits = torch.stack([row[0] for row in r.logits]).float()
    ids = r.sequences[0, inputs["input_ids"].shape[1]:]
    assert torch.equal(ids, logits.argmax(-1))
    best = logits.topk(2).values
    return ids, logits, float((best[:, 0] - best[:, 1]).min())


def trace(model, inputs):
    """One forward pass with everything between the inputs and the logits, caught by hooks."""
    seen, handles = {}, []

    def keep(name, module):
        def hook(_, __, output):
            value = output[0] if isinstance(output, tuple) else output
            seen[name] = value.detach().reshape(-1, value.shape[-1]).clone()

        handles.append(module.register_forward_hook(hook))

    def keep_input(_, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        seen["text.embeddings"] = value.detach().reshape(-1, value.shape[-1]).clone()

    visual, text = model.model.visual, model.model.language_model
    keep("vision.patch_embed", visual.patch_embed)
    for j, block in enumerate(visual.blocks):
        keep(f"vision.block.{j}", block)
    keep("vision.merger_window_order", visual.merger)
    keep("vision.output", visual)
    handles.append(text.layers[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    for i, layer in enumerate(text.layers):
        keep(f"text.attention.{i}", layer.self_attn)
        keep(f"text.mlp.{i}", layer.mlp)
        keep(f"text.layer.{i}", layer)
    keep("text.norm", text.norm)
    with torch.no_grad():
        seen["logits"] = model(**inputs, use_cache=False).logits[0]
    for h in handles:
        h.remove()
    grid = inputs.get("image_grid_thw")
    positions, delta = model.model.get_rope_index(inputs["input_ids"], grid, attention_mask=inputs["attention_mask"])
    seen["input_ids"] = inputs["input_ids"][0].int()
    seen["positions"], seen["rope_delta"] = positions[:, 0].int(), delta.reshape(1).int()
    if grid is not None:
        index, starts = visual.get_window_index(grid)
        seen["vision.window_index"] = index.int()
        seen["vision.window_starts"] = torch.unique_consecutive(torch.tensor(starts, dtype=torch.int32))
        seen["image_grid_thw"], seen["pixel_values"] = grid.int(), inputs["pixel_values"].float()
    return seen


def make_model(out, name):
    """oracle/models/<name>: checkpoint, pictures, a file of tensors per case, what training makes of it, index.json."""
    spec, folder = MODELS[name], f"{out}/oracle/models/{name}"
    model, processor = make_checkpoint(spec, f"{folder}/checkpoint")
    rng, index, vocab, batch = np.random.default_rng(spec["seed"]), [], spec.get("vocab", VOCAB), {}
    for case, sizes, layout in spec["cases"]:
        gap = 0.0
        while gap < SMALLEST_GAP:  # draw again when a near tie would let rounding choose the continuation
            images = [picture(rng, w, h) for w, h in sizes]
            made = processor(images=images, return_tensors="pt") if images else {}
            runs = iter([int(g.prod()) // 4 for g in made.get("image_grid_thw", [])])
            ids = []
            for part in layout:
                if part == "I":
                    pads = ["<|image_pad|>"] * next(runs)
                    ids += [token_id(t, vocab) for t in ["<|vision_start|>", *pads, "<|vision_end|>"]]
                else:
                    ids += rng.integers(0, token_id("<|endoftext|>", vocab), part).tolist()
            mask = torch.ones(1, len(ids), dtype=torch.long)
            inputs = dict(input_ids=torch.tensor([ids]), attention_mask=mask, **made)
            new, logits, gap = greedy(model, inputs)
        seen = trace(model, inputs)
        seen["greedy_ids"], seen["greedy_logits"] = new.int(), logits
        save_file({k: v.contiguous() for k, v in seen.items()}, f"{folder}/{case}.safetensors")
        files = [f"{case}_{k}.png" for k in range(len(images))]
        for im, file in zip(images, files):
            im.save(f"{folder}/{file}", optimize=True)
        index.append(dict(name=case, images=files, tokens=len(ids), greedy_smallest_margin=gap))
        batch[case] = inputs
    info = dict(name=name, seed=spec["seed"], checkpoint="checkpoint", cases=index,
                parameters=sum(p.numel() for p in model.parameters()))
    if "train" in spec:
        info.update(make_training(spec, folder, model, batch, rng))
    write_json(f"{folder}/index.json", info)
    return model


# ------------------------------------------------------------------------------------------------------------- training
def backward(model, samples):
    """Mean cross-entropy over all targets of the samples, and their number; gradients stand in the parameters."""
    model.zero_grad()
    targets, mean = sum(int((labels[1:] != -100).sum()) for _, labels in samples), 0.0
    for inputs, labels in samples:
        logits = model(**inputs, use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum") / targets
        loss.backward()
        mean += float(loss.detach())
    return mean, targets


def trajectory(model, samples, batches, h):
    """Updates by torch.optim's AdamW, one batch each in turn: decay on matrices, clipping, warm-up and cosine."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([
        dict(params=[p for p in trained if p.ndim > 1], weight_decay=h["weight_decay"]),
        dict(params=[p for p in trained if p.ndim == 1], weight_decay=0.0)
    ], lr=h["lr"], betas=(h["beta1"], h["beta2"]), eps=h["eps"])
    schedule, rows = get_cosine_schedule_with_warmup(optimizer, h["warmup"], h["steps"]), []
    for step in range(h["steps"]):
        k = step % len(batches)
        loss, targets = backward(model, [samples[case] for case in batches[k]])
        norm = float(torch.nn.utils.clip_grad_norm_(trained, h["clip"]))
        rows.append(dict(step=step, loss=loss, targets=targets, grad_norm=norm, lr=optimizer.param_groups[0]["lr"],
                         batch=k))
        optimizer.step()
        schedule.step()
    return dict(batches=batches, hyperparameters=h, rows=rows)


def save(path, tensors):
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, path, {"format": "pt"})


def old_key(name):
    """A key of an adapter as PEFT wrote it before transformers 4.52 changed the module tree."""
    return name.replace("model.model.language_model.", "model.model.").replace("model.model.visual.", "model.visual.")


def make_training(spec, folder, model, inputs, rng):
    """Labels, gradients and a trajectory of all weights, and of each adapter; its folder, logits and merged weights."""
    train, samples = spec["train"], {}
    for case, x in inputs.items():  # loss on some of the text
        ids = x["input_ids"][0]
        text = ids < token_id("<|endoftext|>", spec["vocab"])
        samples[case] = (x, torch.where(text & torch.from_numpy(rng.random(len(ids)) < 0.6), ids, -100))
    save(f"{folder}/labels.safetensors", {case: labels.int() for case, (_, labels) in samples.items()})
    whole = copy.deepcopy(model)
    loss, targets = backward(whole, [samples[case] for case in train["batch"]])
    save(f"{folder}/gradients_full.safetensors", {original(n): p.grad for n, p in whole.named_parameters()})
    full = dict(batch=train["batch"], loss=loss, targets=targets,
                trajectory=trajectory(whole, samples, train["batches"], train["full"]))
    save(f"{folder}/trajectory_full_final.safetensors", {original(n): p for n, p in whole.named_parameters()})
    adapters = []
    for name, old, batch, options in spec["adapters"]:
        where = f"{folder}/{name}"
        config = peft.LoraConfig(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **options)
        with_lora = peft.get_peft_model(copy.deepcopy(model), config).eval()
        g = torch.Generator().manual_seed(spec["seed"] + len(adapters))
        with torch.no_grad():
            for n, p in with_lora.named_parameters():
                if p.requires_grad:  # B begins at zero, which would hide half of what there is to see
                    p.copy_((0 if "lora_" in n else p) + 0.15 * torch.randn(p.shape, generator=g))
        with_lora.save_pretrained(f"{where}/adapter")
        os.remove(f"{where}/adapter/README.md")
        with open(f"{where}/adapter/adapter_config.json") as f:
            config = json.load(f)
        config["base_model_name_or_path"] = None
        write_json(f"{where}/adapter/adapter_config.json", config)
        key = (lambda n: old_key(n.replace(".default.", "."))) if old else (lambda n: n.replace(".default.", "."))
        weights = load_file(f"{where}/adapter/adapter_model.safetensors")
        save(f"{where}/adapter/adapter_model.safetensors", {key(n): t for n, t in weights.items()})
        if not old:  # PEFT reads its own folder back
            again = peft.PeftModel.from_pretrained(copy.deepcopy(model), f"{where}/adapter").state_dict()
            assert all(torch.equal(t, again[n]) for n, t in with_lora.state_dict().items())
            merged = copy.deepcopy(with_lora).merge_and_unload()
            save(f"{where}/merged.safetensors", {original(n): p for n, p in merged.named_parameters()})
        with torch.no_grad():
            logits = with_lora(**inputs["image"], use_cache=False).logits[0]
        loss, targets = backward(with_lora, [samples[case] for case in batch])
        trained = {key(n): p for n, p in with_lora.named_parameters() if p.requires_grad}
        gradients = {n: p.grad for n, p in trained.items() if p.grad is not None}
        save(f"{where}/gradients.safetensors", {**gradients, "logits": logits})
        adapters.append(dict(
            name=name, keys="old" if old else "new", r=options["r"], alpha=options["lora_alpha"], tensors=len(weights),
            logits_case="image", batch=batch, loss=loss, targets=targets,
            trajectory=trajectory(with_lora, samples, train["batches"], train["lora"])))
        save(f"{where}/trajectory_final.safetensors", trained)
    return dict(full=full, lora=adapters)


# ------------------------------------------------------------------------------------------------------------- pipeline
def make_ask(out, tokenizer):
    """oracle/pipeline/ask: a checkpoint folder with tokenizer and template, conversations and their greedy answers."""
    spec, folder = MODELS["ask"], f"{out}/oracle/pipeline/ask"
    model, image_processor = make_checkpoint(spec, f"{folder}/checkpoint")
    tokenizer.save_pretrained(f"{folder}/checkpoint")
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        if os.path.exists(f"{folder}/checkpoint/{name}"):
            os.remove(f"{folder}/checkpoint/{name}")
    write_json(f"{folder}/checkpoint/generation_config.json", dict(
        do_sample=True, eos_token_id=[ADDED_ID["<|im_end|>"], ADDED_ID["<|endoftext|>"]],
        pad_token_id=ADDED_ID["<|endoftext|>"], repetition_penalty=1.05, temperature=0.000001))
    processor = Qwen2_5_VLProcessor(image_processor=image_processor, tokenizer=tokenizer,
                                    video_processor=Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
    say = lambda t: {"type": "text", "text": t}
    see = lambda f: {"type": "image", "image": f}
    user = lambda *parts: {"role": "user", "content": list(parts)}
    system = lambda t: {"role": "system", "content": t}
    assistant = lambda t: {"role": "assistant", "content": t}
    conversations = [
        [user(see("c0_0.png"), say("Which tool is in use?"))],
        [system("Answer with one word.\n"), {"role": "user", "content": "Où est la vésicule biliaire ?  🙂"}],
        [user(see("c2_0.png"), say("Frame 0. "), see("c2_1.png"), say("Frame 1.\nWhat changed?"))],
        [user(say("Look: "), see("c3_0.png"), see("c3_1.png")), assistant("The cystic duct is clipped."),
         user(say("Why?"))],
    ]
    rng, rows = np.random.default_rng(spec["seed"]), []
    for messages in conversations:
        parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
        names = [p["image"] for p in parts if "image" in p]
        gap = 0.0
        while gap < SMALLEST_GAP:
            images = [picture(rng, *rng.integers(40, 130, 2)) for _ in names]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = processor(text=[prompt], images=images or None, return_tensors="pt")
            new, logits, gap = greedy(model, inputs)
            if not names:
                assert gap >= SMALLEST_GAP, "nothing to draw again: choose another seed"
        for im, name in zip(images, names):
            im.save(f"{folder}/{name}", optimize=True)
        top = logits.topk(5)
        rows.append(dict(
            messages=messages, prompt=prompt, input_ids=inputs["input_ids"][0].tolist(),
            grid_thw=inputs["image_grid_thw"].tolist() if names else [], greedy_ids=new.tolist(),
            greedy_text=tokenizer.decode(new), greedy_text_skip_special=tokenizer.decode(new, skip_special_tokens=True),
            smallest_margin=gap, top5_ids=top.indices.tolist(), top5_logits=top.values.tolist()))
    write_jsonl(f"{folder}/conversations.jsonl", rows)
    pick, rows = random.Random(spec["seed"]), []
    for _ in range(15):
        messages = [system(pick.choice(["", "Be brief.", " spaced \n"]))] if pick.random() < 0.5 else []
        for _ in range(pick.randint(1, 3)):
            choices = [see("x.png"), say("one"), say(" two \n"), say("")]
            parts = [pick.choice(choices) for _ in range(pick.randint(0, 4))]
            typed = {"role": "user", "content": pick.choice(["", "<|im_end|> typed", "a\nb"])}
            messages += [user(*parts) if pick.random() < 0.7 else typed,
                         assistant(pick.choice(["ok", "", "<think>t</think>"]))]
        for more in (True, False):
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=more)
            rows.append(dict(messages=messages, add_generation_prompt=more, prompt=prompt))
    write_jsonl(f"{folder}/chat_template.jsonl", rows)


def make_resize(out, seed):
    """oracle/pipeline/smart_resize.csv and resize/: sizes from transformers, pixels from Pillow."""
    rng, rows = np.random.default_rng(seed), ["height,width,factor,min_pixels,max_pixels,out_height,out_width"]
    for k in range(300):
        factor = int(rng.choice([28, 28, 12, 16]))
        h, w = (int(v) for v in np.exp(rng.uniform(0, np.log(6000), 2)))
        if k % 3 == 0:  # exact halves of the factor: where round-half-to-even shows
            h, w = (int(factor * (rng.integers(1, 40) + 0.5)) for _ in range(2))
        low, high = [(3136, 12845056), (3136, 1003520), (4 * factor * factor, 64 * factor * factor)][k % 3]
        try:
            size = smart_resize(h, w, factor, low, high)
        except ValueError:
            size = (0, 0)
        rows.append(",".join(str(v) for v in (h, w, factor, low, high, *size)))
    write(f"{out}/oracle/pipeline/smart_resize.csv", "\n".join(rows) + "\n")
    folder, rows = f"{out}/oracle/pipeline/resize", []
    os.makedirs(folder)
    # Pillow 13 resizes columns first when the height shrinks by more than twice what the width shrinks: some of both
    sizes = [(97, 53, 56, 84), (31, 40, 112, 84), (5, 120, 28, 112), (84, 33, 84, 56), (60, 60, 60, 60),
             (150, 7, 28, 28), (90, 120, 70, 80), (90, 120, 70, 79), (50, 170, 84, 28), (40, 64, 40, 28)]
    for k, (w, h, to_w, to_h) in enumerate(sizes):
        im = picture(rng, w, h)
        im.save(f"{folder}/{k:02d}_in.png", optimize=True)
        im.resize((to_w, to_h), Image.BICUBIC).save(f"{folder}/{k:02d}_out.png", optimize=True)
        rows.append(dict(input=f"{k:02d}_in.png", output=f"{k:02d}_out.png", width=to_w, height=to_h))
    write_jsonl(f"{folder}/index.jsonl", rows)


# ------------------------------------------------------------------------------------------------------------- sampling
def make_sampling(out, model, seed):
    """oracle/sampling: the processors that generate() would build, on one row of logits in double and in float."""
    rng, rows = np.random.default_rng(seed), []
    plain = dict(do_sample=True, repetition_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0, min_p=None)
    settings = [("plain", {}), ("cold", dict(temperature=0.3)), ("colder", dict(temperature=1e-6)),
                ("hot", dict(temperature=1.7)), ("top_k", dict(top_k=5)), ("top_k_over_V", dict(top_k=1000)),
                ("top_p", dict(top_p=0.8)), ("top_p_zero", dict(top_p=0.0)), ("min_p", dict(min_p=0.1)),
                ("min_p_one", dict(min_p=1.0)), ("penalty", dict(repetition_penalty=1.3)),
                ("reward", dict(repetition_penalty=0.8)),
                ("all", dict(repetition_penalty=1.1, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02)),
                ("greedy_penalty", dict(do_sample=False, repetition_penalty=1.4, temperature=0.5, top_k=3))]
    for name, change in settings:
        for V in (17, 90):
            s = {**plain, **change}
            while True:  # draw again when float and double keep different ids: rounding must not decide a stored case
                logits = np.round(rng.normal(0, 3, V) * 1024) / 1024
                previous = rng.integers(0, V, int(rng.integers(0, 9))).tolist()
                config = GenerationConfig(**s, pad_token_id=0)
                processors = model._get_logits_processor(config, input_ids_seq_length=len(previous), device="cpu")
                seen = torch.tensor([previous], dtype=torch.long)
                doubles = torch.tensor(logits[None])
                scores = [processors(seen, x)[0] for x in (doubles, doubles.float())]
                kept = [torch.isfinite(x) for x in scores]
                probs = [torch.softmax(x, -1).double() for x in scores]
                if torch.equal(kept[0], kept[1]):
                    break
            ids = kept[0].nonzero()[:, 0]
            rows.append(dict(
                id=f"{name}_V{V}", V=V, note="", **s, min_tokens_to_keep=1, prev_ids=previous, logits=logits.tolist(),
                processors=[type(p).__name__ for p in processors], check="exact", n_kept=len(ids), kept=ids.tolist(),
                probs=probs[0][ids].tolist(), argmax=(scores[0] == scores[0].max()).nonzero()[:, 0].tolist(),
                max_diff_float32=float((probs[0] - probs[1]).abs().max())))
    write_jsonl(f"{out}/oracle/sampling/sampling_cases.jsonl", rows)


# ------------------------------------------------------------------------------------------------------- files of bytes
JSON_FILES = {
    "y_array_of_everything.json": b'[null, true, false, 0, -1.5e+3, "text", {}, []]',
    "y_escapes.json": rb'["\"\\\/\b\f\n\r\t\u00e9\ud83d\ude42\u0000"]', "y_lonely_number.json": b"-0",
    "y_lonely_string.json": b'""', "y_number_small_exponent.json": b"[1E-2]",
    "y_nested_objects.json": b'{"a":{"b":{"":[1]}}}', "y_repeated_key.json": b'{"a":1,"a":2}',
    "y_utf8_key.json": '{"vésicule":"胆囊"}'.encode(), "y_whitespace.json": b" \t\r\n[ ]\n ",
    "n_bare_word.json": b"[True]", "n_comma_after_last.json": b"[1,]", "n_comma_double.json": b"[1,,2]",
    "n_control_in_string.json": b'["a\x01b"]', "n_empty.json": b"", "n_escape_unknown.json": rb'["\x41"]',
    "n_half_a_character.json": b'["\xc3"]', "n_key_without_quotes.json": b"{a:1}", "n_missing_colon.json": b'{"a" 1}',
    "n_newline_in_string.json": b'["a\nb"]', "n_number_hex.json": b"[0x10]", "n_number_leading_zero.json": b"[012]",
    "n_number_no_fraction.json": b"[1.]", "n_number_plus.json": b"[+1]", "n_only_space.json": b" ",
    "n_overlong_utf8.json": b'["\xc0\xaf"]', "n_single_quotes.json": b"['a']", "n_string_open.json": b'["abc',
    "n_text_after_value.json": b"[] x", "n_unclosed_array.json": b"[[1]", "n_wrong_bracket.json": b'{"a":1]',
    "n_deep.json": b"[" * 5000, "i_huge_number.json": b"[1e400]", "i_lonely_surrogate.json": rb'["\ud800"]',
    "i_bom.json": b"\xef\xbb\xbf{}",
}


def make_json(out):
    """testdata/jsontestsuite: small files of our own, named and laid out like the public suite of that name."""
    rows = ["file\tverdict\tbytes\tsha256"]
    os.makedirs(f"{out}/testdata/jsontestsuite/test_parsing")
    for name, data in sorted(JSON_FILES.items()):
        with open(f"{out}/testdata/jsontestsuite/test_parsing/{name}", "wb") as f:
            f.write(data)
        rows.append(f"{name}\t{dict(y='accept', n='reject', i='either')[name[0]]}\t{len(data)}\t{sha256(data)}")
    write(f"{out}/testdata/jsontestsuite/MANIFEST.tsv", "\n".join(rows) + "\n")


def png_chunks(data):
    """The chunks of a PNG as [type, payload] pairs."""
    at, chunks = 8, []
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        chunks.append([kind, data[at + 8:at + 8 + n]])
        at += 12 + n
    return chunks


def png_from(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I4s", len(d), k) + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)


def make_images(out, seed):
    """testdata/images: good and damaged PNG and JPEG and what Pillow reads. oracle/pipeline/pixels: these resized."""
    rng, folder = np.random.default_rng(seed), f"{out}/testdata/images"
    scene = picture(rng, 83, 61)

    def encoded(im, kind, **options):
        b = io.BytesIO()
        im.save(b, kind, **options)
        return b.getvalue()

    alpha = scene.copy()
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (61, 83), dtype=np.uint8)))
    grey16 = Image.fromarray((np.asarray(scene)[..., 0].astype(np.uint16) * 251 + 7))
    exif = Image.Exif()
    exif[0x0112] = 6
    png, jpg = encoded(scene, "PNG"), encoded(scene, "JPEG", quality=85, subsampling=2)
    chunks = png_chunks(png)
    data_at = next(k for k, c in enumerate(chunks) if c[0] == b"IDAT")
    broken_crc = bytearray(png)
    broken_crc[29] ^= 1  # the stored checksum of IHDR
    header = lambda w, h: png_from([[b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)]] + chunks[1:])
    accept = lambda *args, **options: ("accept", encoded(*args, **options))
    half = zlib.compress(zlib.decompress(chunks[data_at][1])[:5000])
    files = {  # name: (what this project must do, bytes)
        "png/rgb.png": ("accept", png),
        "png/grey.png": accept(scene.convert("L"), "PNG"),
        "png/one_bit.png": accept(scene.convert("1"), "PNG"),
        "png/palette.png": accept(scene.quantize(40), "PNG"),
        "png/palette_4bit.png": accept(scene.quantize(11), "PNG", bits=4),
        "png/rgba.png": accept(alpha, "PNG"),
        "png/grey_alpha.png": accept(alpha.convert("LA"), "PNG"),
        "png/grey16.png": accept(grey16, "PNG"),
        "png/one_pixel.png": accept(scene.crop((0, 0, 1, 1)), "PNG"),
        "png/broken_crc.png": ("reject", bytes(broken_crc)),
        "png/cut_off.png": ("reject", png[:len(png) // 2]),
        "png/no_end.png": ("reject", png_from(chunks[:-1])),
        "png/no_data.png": ("reject", png_from([c for c in chunks if c[0] != b"IDAT"])),
        "png/half_the_data.png": ("reject", png_from(chunks[:data_at] + [[b"IDAT", half], chunks[-1]])),
        "png/no_width.png": ("reject", header(0, 61)),
        "png/too_wide.png": ("reject", header(60000, 60000)),
        "png/unknown_critical_chunk.png": ("reject", png_from(chunks[:1] + [[b"ABCD", b"?"]] + chunks[1:])),
        "png/text_file.png": ("reject", b"not a picture\n"),
        "jpeg/s420.jpg": ("accept", jpg),
        "jpeg/s422.jpg": accept(scene, "JPEG", quality=75, subsampling=1),
        "jpeg/s444.jpg": accept(scene, "JPEG", quality=92, subsampling=0),
        "jpeg/grey.jpg": accept(scene.convert("L"), "JPEG", quality=80),
        "jpeg/progressive.jpg": accept(scene, "JPEG", quality=85, progressive=True),
        "jpeg/restarts.jpg": accept(scene, "JPEG", quality=85, restart_marker_blocks=2),
        "jpeg/exif_turned.jpg": accept(scene, "JPEG", quality=85, exif=exif),
        "jpeg/cmyk.jpg": ("reject", encoded(scene.convert("CMYK"), "JPEG")),
        "jpeg_malformed/cut_off.jpg": ("reject", jpg[:len(jpg) * 2 // 3]),
        "jpeg_malformed/header_only.jpg": ("reject", jpg[:20]),
        "jpeg_malformed/no_tables.jpg": ("reject", jpg[:2] + jpg[jpg.index(b"\xff\xda"):]),
    }
    columns = [
        "file", "surgr1_verdict", "pillow_verdict", "width", "height", "pillow_mode", "rgb_sha256",
        "rgba_on_white_sha256", "jpeg_mean_rgb", "bytes", "file_sha256", "source_repo", "licence", "note"
    ]
    rows, pixel_rows, pixels = ["\t".join(columns)], [], {}
    processor = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=28 * 28 * 24)
    os.makedirs(f"{folder}/reference")
    for name, (verdict, data) in sorted(files.items()):
        base = os.path.basename(name)
        os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        with open(f"{folder}/{name}", "wb") as f:
            f.write(data)
        row = dict(file=name, surgr1_verdict=verdict, bytes=len(data), file_sha256=sha256(data),
                   source_repo="made by test/reference/make_fixtures.py", licence="as the project",
                   pillow_verdict="reject")
        try:
            im = Image.open(io.BytesIO(data))
            im.load()
            row.update(pillow_verdict="accept", width=im.width, height=im.height, pillow_mode=im.mode)
        except Exception:
            assert verdict == "reject", name
        if verdict == "accept":
            rgb = im.convert("RGB")
            if im.mode.startswith("I"):  # Pillow would clip 16-bit grey to white; the rule here is the high byte
                rgb = Image.fromarray((np.asarray(im).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
                row["note"] = "gray16: the high byte (Pillow alone would clip)"
            row["rgb_sha256"] = sha256(rgb.tobytes())
            if im.mode == "RGBA":
                white = Image.new("RGB", im.size, (255, 255, 255))
                white.paste(im, mask=im.getchannel("A"))
                row["rgba_on_white_sha256"] = sha256(white.tobytes())
            if name.startswith("jpeg"):
                row["jpeg_mean_rgb"] = ",".join(f"{v:.3f}" for v in np.asarray(rgb).reshape(-1, 3).mean(0))
                rgb.save(f"{folder}/reference/{base}.png", optimize=True)
            if rgb.height > 4:  # a height of 1 or 3 makes the processor take rows for channels
                made = processor(images=[rgb], return_tensors="np")
                h, w = smart_resize(rgb.height, rgb.width, 28, 3136, 28 * 28 * 24)
                pixels[base] = torch.from_numpy(np.asarray(rgb.resize((w, h), Image.BICUBIC)).copy())
                pixel_rows.append(
                    dict(file=base, mode=im.mode, width=rgb.width, height=rgb.height,
                         grid_thw=made["image_grid_thw"][0].tolist(), tensor=base))
                if name == "png/palette.png":
                    pixels[f"{base}.pixel_values"] = torch.from_numpy(made["pixel_values"])
        rows.append("\t".join(str(row.get(c, "")) for c in columns))
    write(f"{folder}/MANIFEST.tsv", "\n".join(rows) + "\n")
    os.makedirs(f"{out}/oracle/pipeline/pixels")
    save_file(pixels, f"{out}/oracle/pipeline/pixels/pixels.safetensors")
    write_jsonl(f"{out}/oracle/pipeline/pixels/index.jsonl", pixel_rows)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", help="folder to fill; what this script made there before is replaced")
    out = args.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for part in ("oracle", "tokenizer", "testdata"):
        shutil.rmtree(f"{out}/{part}", ignore_errors=True)
    tokenizer = make_tokenizer(out, 11)
    model = make_model(out, "thirds")
    make_model(out, "learner")
    make_ask(out, tokenizer)
    make_resize(out, 12)
    make_sampling(out, model, 13)
    make_json(out)
    make_images(out, 14)
    modules = (torch, transformers, peft, tokenizers, safetensors, PIL, np)
    write_json(f"{out}/oracle/models/versions.json", {m.__name__: m.__version__ for m in modules})


if __name__ == "__main__":
    main()
