"""Shows that what `mingle export` writes is what PEFT and transformers take it for, and that PEFT's own exact combination
(`add_weighted_adapter(combination_type="cat")`) is the update that we cut down.

Run by hand, from the root, in an environment with torch, transformers and peft:

    cargo build --release -p mingle -p mingle-trainer --bins --example logits
    python tests/by_hand/peft_agrees.py tests/reference [CASE ...]

For every reference case with an adapter:
- plain LoRA by `mingle export --adapter`: PEFT takes over exactly its tensors and gives the same logits as it does with the
  adapter it wrote itself, and as mingle gives, within 1e-4;
- the model of `mingle export --base --adapter`: transformers gives the logits of PEFT's own merge, within 1e-4 (and what the
  base's type rounds, where that is not f32);
- three adapters of the case combined by PEFT's `cat`: its update is the weighted sum, within 1e-6 of it, so is that of
  `mingle export --rank` at the sum of the ranks; at a lower rank the error and what mingle says of it are torch's SVD's.

Last run with torch 2.15.0, transformers 5.24.0 and peft 0.21.2.
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

arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=pathlib.Path)
arguments.add_argument("cases", nargs="*")
arguments.add_argument("--logits", default="target/release/examples/logits")
arguments.add_argument("--mingle", default="target/release/mingle")
arguments = arguments.parse_args()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
work = pathlib.Path(tempfile.mkdtemp())
WEIGHTS = [0.5, 0.3, 0.2]


def load_base(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    classifies = config.model_type in ("bert", "roberta")
    kind = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def inputs(case):
    tensors = load_file(case / "tensors.safetensors")
    return {key: value for key, value in tensors.items() if key in ("input_ids", "attention_mask", "token_type_ids")}


def logits(model, tensors):
    with torch.no_grad():
        found = model(**tensors).logits
    return found * tensors["attention_mask"][..., None] if found.ndim == 3 and "attention_mask" in tensors else found


def ours(base, adapter, case):
    out = work / "logits.safetensors"
    subprocess.run([arguments.logits, base, adapter, case / "tensors.safetensors", out], check=True)
    return load_file(out)["logits"]


def export(*words):
    said = subprocess.run([arguments.mingle, "export", "--json", *map(str, words)], check=True, capture_output=True, text=True)
    return json.loads(said.stdout)


def near(what, found, expected, within):
    worst = (found - expected).abs().max().item()
    print(f"  {what:58} within {worst:.1e}", flush=True)
    if not worst <= within:
        sys.exit(f"they differ by more than {within}")


def updates(folder):
    """scale B A of every module, in f64, as PEFT's documentation defines it for plain LoRA."""
    config, tensors = json.load(open(folder / "adapter_config.json")), load_file(folder / "adapter_model.safetensors")
    if config["use_rslora"] or config["rank_pattern"] or config["alpha_pattern"]:
        sys.exit(f"{folder} is not plain")
    scale = config["lora_alpha"] / config["r"]
    pairs = {name: (tensors[name], tensors[name.replace("lora_A", "lora_B")]) for name in tensors if "lora_A" in name}
    return {name: scale * (b.double() @ a.double()) for name, (a, b) in pairs.items()}


def compare_forms(case):
    base, adapter, tensors = case / "base", case / "adapter_end", inputs(case)
    plain, model = work / f"{case.name}-plain", work / f"{case.name}-model"
    export("--adapter", adapter, "--out", plain)
    export("--base", base, "--adapter", adapter, "--out", model)
    theirs = logits(peft.PeftModel.from_pretrained(load_base(base), adapter).eval(), tensors)
    loaded = peft.PeftModel.from_pretrained(load_base(base), plain).eval()
    stored, taken = load_file(plain / "adapter_model.safetensors"), peft.get_peft_model_state_dict(loaded)
    if sorted(stored) != sorted(taken) or any(not torch.equal(stored[name], taken[name]) for name in stored):
        sys.exit(f"{plain}: PEFT did not take over exactly the tensors of the directory")
    near("plain LoRA in PEFT against the adapter in PEFT", logits(loaded, tensors), theirs, 1e-4)
    near("plain LoRA in PEFT against plain LoRA in mingle", logits(loaded, tensors), ours(base, plain, case), 1e-4)
    kept = {str(tensor.dtype) for file in base.glob("*.safetensors") for tensor in load_file(file).values()}
    written = {str(tensor.dtype) for file in model.glob("*.safetensors") for tensor in load_file(file).values()}
    if kept != written:
        sys.exit(f"{model} has {written}, its base {kept}")
    near("the model in transformers against the adapter in PEFT", logits(load_base(model), tensors), theirs, 1e-4 if kept == {"torch.float32"} else 3e-2)
    near("the model in transformers against the model in mingle", logits(load_base(model), tensors), ours(model, "-", case), 1e-4)


def compare_combination(case):
    """PEFT's `cat` of three adapters: the one of the case, and two with other numbers in its form. Heads it cannot combine."""
    plain, folders = work / f"{case.name}-plain", []
    torch.manual_seed(1)
    for index in range(3):
        folder = work / f"{case.name}-{index}"
        folder.mkdir()
        low_rank = {name: tensor for name, tensor in load_file(plain / "adapter_model.safetensors").items() if "lora_" in name}
        tensors = {name: tensor if index == 0 else torch.randn_like(tensor) * 0.05 for name, tensor in low_rank.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = json.load(open(plain / "adapter_config.json"))
        json.dump({**config, "modules_to_save": None, "task_type": None}, open(folder / "adapter_config.json", "w"))
        folders.append(folder)
    model = peft.PeftModel.from_pretrained(load_base(case / "base"), folders[0], adapter_name="member0")
    for index in (1, 2):
        model.load_adapter(folders[index], adapter_name=f"member{index}")
    model.add_weighted_adapter(["member0", "member1", "member2"], WEIGHTS, "combined", combination_type="cat")
    model.save_pretrained(work / case.name, selected_adapters=["combined"])
    cat, members = work / case.name / "combined", [updates(folder) for folder in folders]
    exact = {name: sum(weight * member[name] for weight, member in zip(WEIGHTS, members)) for name in members[0]}
    ranks = json.load(open(cat / "adapter_config.json"))["r"]
    whole, cut = work / f"{case.name}-whole", work / f"{case.name}-cut"
    export("--adapter", cat, "--rank", ranks, "--out", whole)
    rank = max(1, ranks // 3)
    said = export("--adapter", cat, "--rank", rank, "--out", cut)
    worst = {"cat": 0.0, "whole": 0.0, "cut": 0.0, "said": 0.0}
    theirs, full, small = updates(cat), updates(whole), updates(cut)
    lost = all_energy = 0.0
    for name, exact_update in exact.items():
        values = torch.linalg.svdvals(exact_update)
        least = values[rank:].square().sum().item()
        lost, all_energy = lost + least, all_energy + values.square().sum().item()
        worst["cat"] = max(worst["cat"], (theirs[name] - exact_update).abs().max().item())
        worst["whole"] = max(worst["whole"], (full[name] - exact_update).abs().max().item())
        error = (small[name] - exact_update).square().sum().item()
        worst["cut"] = max(worst["cut"], abs(error - least) / values.square().sum().item())
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        told = next(found["discarded"] for found in said["modules"] if found["module"] == module)
        worst["said"] = max(worst["said"], abs(told - least / values.square().sum().item()))
    worst["said"] = max(worst["said"], abs(said["discarded"] - lost / all_energy))
    near(f"PEFT's cat (rank {ranks}) against the weighted sum", torch.tensor(worst["cat"]), torch.tensor(0.0), 1e-6)
    near(f"its export at rank {ranks} against the weighted sum", torch.tensor(worst["whole"]), torch.tensor(0.0), 1e-6)
    near(f"error of its export at rank {rank} against torch's SVD", torch.tensor(worst["cut"]), torch.tensor(0.0), 1e-6)
    near(f"the energy said to be left out ({said['discarded']:.3f}) against it", torch.tensor(worst["said"]), torch.tensor(0.0), 1e-6)


print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
cases = arguments.cases or sorted(case.name for case in arguments.folder.iterdir() if (case / "adapter_end").exists())
for name in cases:
    print(name)
    compare_forms(arguments.folder / name)
    compare_combination(arguments.folder / name)
print("the same")
