"""Shows that transformers and PEFT load what mingle writes, and compute what mingle computes.

Run by hand, from the root, in an environment with torch, transformers, peft and tokenizers:

    cargo build --release -p mingle-trainer --example logits
    python tests/by_hand/peft_loads.py tests/reference [CASE ...]
    python tests/by_hand/peft_loads.py BASE ADAPTER INPUT [--loss DATA.jsonl]

The first form takes every reference case: mingle reads its adapters, computes logits and writes the adapters again; PEFT
must take over exactly the tensors that mingle wrote, and give the same logits within 1e-4. The second form does so for any
base and any adapter that mingle wrote (a member's or a merged one), on the texts of INPUT, one a line; with --loss it also
compares the mean loss over the labelled tokens of Alpaca or question/answer JSON lines with what `mingle eval` says.

Last run with torch 2.15.0, transformers 5.23.0 and peft 0.21.2.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

arguments = argparse.ArgumentParser()
arguments.add_argument("paths", nargs="+")
arguments.add_argument("--logits", default="target/release/examples/logits")
arguments.add_argument("--mingle", default="target/release/mingle")
arguments.add_argument("--loss")
arguments.add_argument("--limit", type=int, default=20)
arguments = arguments.parse_args()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
work = pathlib.Path(tempfile.mkdtemp())


def load_base(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    classifies = config.model_type in ("bert", "roberta")
    kind = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def load_adapter(base, folder):
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    stored, loaded = load_file(f"{folder}/adapter_model.safetensors"), peft.get_peft_model_state_dict(model)
    if sorted(stored) != sorted(loaded) or any(not torch.equal(stored[name], loaded[name]) for name in stored):
        sys.exit(f"{folder}: PEFT did not take over exactly the tensors of the directory")
    return model


def compare(name, base, adapter, inputs):
    """`inputs` is a file of input_ids and what goes with them."""
    saved, output = work / "saved", work / "logits.safetensors"
    subprocess.run([arguments.logits, base, adapter, inputs, output, saved], check=True)
    ours = load_file(output)["logits"]
    tensors = {key: value for key, value in load_file(inputs).items() if key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        theirs = load_adapter(load_base(base), saved)(**tensors).logits
    if theirs.ndim == 3 and "attention_mask" in tensors:
        theirs = theirs * tensors["attention_mask"][..., None]
    worst = (ours - theirs).abs().max().item()
    print(f"{name:32} logits within {worst:.1e}", flush=True)
    if not worst < 1e-4:
        sys.exit("they differ")


def encode_lines(base, file):
    """Texts as a padded batch with its mask."""
    tokenizer = Tokenizer.from_file(f"{base}/tokenizer.json")
    tokenizer.no_truncation()
    rows = [tokenizer.encode(line) for line in open(file).read().splitlines()[: arguments.limit] if line.strip()]
    length = max(len(row.ids) for row in rows)
    pad = transformers.AutoConfig.from_pretrained(base).pad_token_id or 0
    padded = lambda ids, filler: list(ids) + [filler] * (length - len(ids))
    tensors = dict(input_ids=[padded(row.ids, pad) for row in rows], attention_mask=[padded([1] * len(row.ids), 0) for row in rows])
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, work / "inputs.safetensors")
    return work / "inputs.safetensors"


def compare_losses(base, adapter, data):
    model = load_adapter(load_base(base), adapter)
    tokenizer, config = Tokenizer.from_file(f"{base}/tokenizer.json"), json.load(open(f"{base}/config.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    loss_sum, labels_count = 0.0, 0
    for line in list(open(data))[: arguments.limit]:
        record = json.loads(line)
        if "question" in record:
            prompt, answer = record["question"] + "\n", record["answer"]
        else:
            prompt = record["instruction"] + "\n" + (record["input"] + "\n" if record.get("input") else "")
            answer = record["output"]
        start = [config["bos_token_id"]] + encode(prompt)
        tokens = (start + encode(answer) + [config["eos_token_id"]])[:512]
        labels = ([-100] * len(start) + tokens[len(start) :])[:512]
        count = sum(label != -100 for label in labels)
        if count == 0:
            continue
        with torch.no_grad():
            result = model(input_ids=torch.tensor([tokens]), labels=torch.tensor([labels]))
        loss_sum += result.loss.item() * count
        labels_count += count
    theirs = loss_sum / labels_count
    command = [arguments.mingle, "eval", "--base", base, "--adapter", adapter, "--data", data]
    ours = json.loads(subprocess.check_output(command + ["--limit", str(arguments.limit), "--json"]))["loss"]
    print(f"PEFT   {theirs:.6f} over {labels_count} labelled tokens")
    print(f"mingle {ours['loss']:.6f} over {ours['tokens']} labelled tokens")
    if labels_count != ours["tokens"] or abs(theirs - ours["loss"]) > 1e-4:
        sys.exit("they differ")


print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
first = pathlib.Path(arguments.paths[0])
if (first / "config.json").exists():
    base, adapter, texts = arguments.paths
    compare(adapter, base, adapter, encode_lines(base, texts))
    if arguments.loss:
        compare_losses(base, adapter, arguments.loss)
else:
    cases = arguments.paths[1:] or sorted(case.name for case in first.iterdir() if (case / "adapter_start").exists())
    for case in cases:
        for adapter in ("adapter_start", "adapter_end"):
            compare(f"{case} {adapter}", first / case / "base", first / case / adapter, first / case / "tensors.safetensors")
print("the same")
