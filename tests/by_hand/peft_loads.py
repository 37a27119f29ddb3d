"""Shows that transformers and PEFT load a directory that mingle wrote, and compute what mingle computes.

Run by hand in an environment with torch, transformers, peft and tokenizers:

    python tests/by_hand/peft_loads.py BASE ADAPTER DATA.jsonl [--mingle target/release/mingle] [--limit 20]

BASE is a Hugging Face directory, ADAPTER a PEFT directory (a member's or a merged one), DATA Alpaca or question/answer
JSON lines. It prints the mean loss over the labelled tokens as PEFT gives it and as `mingle eval` gives it, and fails when
they differ by more than 1e-4 or when a tensor of the adapter was not used.

Last run with torch 2.15.0, transformers 5.23.0 and peft 0.21.2.
"""

import argparse
import json
import subprocess
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

arguments = argparse.ArgumentParser()
arguments.add_argument("base")
arguments.add_argument("adapter")
arguments.add_argument("data")
arguments.add_argument("--mingle", default="target/release/mingle")
arguments.add_argument("--limit", type=int, default=20)
arguments = arguments.parse_args()

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
base = transformers.AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
model = peft.PeftModel.from_pretrained(base, arguments.adapter).eval()

stored = load_file(f"{arguments.adapter}/adapter_model.safetensors")
loaded = peft.get_peft_model_state_dict(model)
if sorted(stored) != sorted(loaded) or any(not torch.equal(stored[name], loaded[name]) for name in stored):
    sys.exit("PEFT did not take over exactly the tensors of the directory")

tokenizer = Tokenizer.from_file(f"{arguments.base}/tokenizer.json")
config = json.load(open(f"{arguments.base}/config.json"))
encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
loss_sum, labels_count = 0.0, 0
for line in list(open(arguments.data))[: arguments.limit]:
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
command = [arguments.mingle, "eval", "--base", arguments.base, "--adapter", arguments.adapter, "--data", arguments.data]
ours = json.loads(subprocess.check_output(command + ["--limit", str(arguments.limit), "--json"]))["loss"]
print(f"PEFT   {theirs:.6f} over {labels_count} labelled tokens")
print(f"mingle {ours['loss']:.6f} over {ours['tokens']} labelled tokens")
if labels_count != ours["tokens"] or abs(theirs - ours["loss"]) > 1e-4:
    sys.exit("they differ")
print("the same")
