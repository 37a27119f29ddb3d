"""Writes the reference cases of tests/reference: tiny models saved by transformers, a PEFT adapter on each, and what
torch computes for both on the CPU in f32. `node/trainer/src/train/reference.rs` holds this project's models to them.

Run by hand, from the root, in an environment with torch, transformers, peft and safetensors:

    python tests/by_hand/make_reference.py tests/reference [CASE ...]

A case is a folder:

    base/                 a Hugging Face directory; some are rewritten as older releases of transformers left them
    adapter_start/        a PEFT directory whose B is not zero, so that A has gradients as well
    adapter_end/          the same after STEPS steps of AdamW
    tensors.safetensors   input_ids, labels (-100: not learned), attention_mask and token_type_ids where there are some,
                          logits of the start (zero where the mask is), grad.NAME of the first loss
    reference.json        the losses before each step and after the last, the optimiser's settings, versions

A `full-` case trains every weight: it has no adapter, `end/` holds the trained base, and NAME is the base's tensor name.

Every base and start is read back from its files before anything is computed, so the numbers belong to what is on disk.
Last run with torch 2.15.0, transformers 5.23.0 and peft 0.21.2.
"""

import json
import math
import pathlib
import re
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

STEPS, LEARNING_RATE, SEQUENCES, LENGTH, VOCABULARY, SEED = 20, 1e-3, 3, 14, 48, 7
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SOME = ["q_proj", "v_proj"]
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0)
DECODER = dict(SHAPE, num_key_value_heads=2)
# Wave lengths of 6, 20, 63 and 199 positions: kept, blended, blended and stretched.
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
GPT2 = dict(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
GPT2_ADAPTER = dict(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
BERT_ADAPTER = dict(target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS")
ROBERTA = dict(SHAPE, type_vocab_size=1, max_position_embeddings=34, pad_token_id=1, bos_token_id=0)


def case(family, settings, adapter=None, **how):
    """`how`: dtype of the stored base, shard (largest file), old (rewrites what was saved), ragged, pairs, full."""
    return dict(family=family, settings=settings, adapter=adapter or dict(target_modules=ALL), **how)


def old_config(change):
    """config.json as transformers 4 wrote it: `rope_theta` and `rope_scaling` at the top, `torch_dtype`."""

    def rewrite(config, tensors):
        rope = config.pop("rope_parameters", None)
        if rope:
            config["rope_theta"] = rope.pop("rope_theta")
            kind = rope.pop("rope_type")
            config["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **rope}
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.40.0"
        config.pop("layer_types", None)
        change(config)
        return tensors

    return rewrite


def first_rope_scaling(config):
    """As Llama 2's time wrote it: `type` instead of `rope_type`, and no `head_dim`."""
    config["rope_scaling"] = {"type": config["rope_scaling"]["rope_type"], "factor": config["rope_scaling"]["factor"]}
    config.pop("head_dim")


def gpt2_of_the_hub(config, tensors):
    """The published GPT-2: no `transformer.` before the names, and the causal masks stored with the weights."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(config["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, config["n_positions"], config["n_positions"]))
    return tensors


def bert_of_the_hub(config, tensors):
    """The published BERT: gamma and beta, heads of the pre-training, position ids, and no classifier."""
    rename = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    tensors = {rename(name): tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    tensors["cls.predictions.bias"] = torch.zeros(VOCABULARY)
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, config["hidden_size"])
    tensors["bert.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    config["architectures"] = ["BertForMaskedLM"]
    return tensors


def roberta_of_the_hub(config, tensors):
    """The published RoBERTa: a language-model head, no classifier."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    tensors["lm_head.bias"] = torch.zeros(VOCABULARY)
    tensors["roberta.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    config["architectures"] = ["RobertaForMaskedLM"]
    return tensors


CASES = {
    "llama": case("Llama", dict(DECODER)),
    "llama-tied": case("Llama", dict(DECODER, tie_word_embeddings=True, rms_norm_eps=1e-5), dict(target_modules=SOME)),
    "llama-biased": case("Llama", dict(DECODER, attention_bias=True, mlp_bias=True)),
    "llama-head-dim": case("Llama", dict(DECODER, head_dim=6)),
    "llama-ragged": case("Llama", dict(DECODER), ragged=True),
    "llama3-rope": case("Llama", dict(DECODER, head_dim=8, rope_parameters=LLAMA3), dict(target_modules=SOME)),
    "linear-rope": case("Llama", dict(DECODER, rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.0)), dict(target_modules=SOME)),
    "llama3-rope-old": case("Llama", dict(DECODER, head_dim=8, rope_parameters=LLAMA3), dict(target_modules=SOME), old=old_config(lambda config: None)),
    "linear-rope-old": case("Llama", dict(DECODER, rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.0)),
                            dict(target_modules=SOME), old=old_config(first_rope_scaling)),
    "llama-rslora": case("Llama", dict(DECODER), dict(target_modules=SOME, use_rslora=True)),
    "llama-patterns": case("Llama", dict(DECODER), dict(target_modules=ALL, rank_pattern={"q_proj": 1, r"model\.layers\.1\..*down_proj": 3},
                                                        alpha_pattern={"layers.0.mlp.up_proj": 8})),
    "llama-regex": case("Llama", dict(DECODER), dict(target_modules=r".*\.(0\.self_attn\.[qk]|1\.mlp\.down)_proj")),
    "llama-saved": case("Llama", dict(DECODER), dict(target_modules=SOME, modules_to_save=["embed_tokens", "lm_head"])),
    "llama-bf16": case("Llama", dict(DECODER), dtype=torch.bfloat16),
    "llama-f16": case("Llama", dict(DECODER), dtype=torch.float16, shard=8000),
    "mistral": case("Mistral", dict(DECODER, sliding_window=5, head_dim=8)),
    "mistral-old": case("Mistral", dict(DECODER, sliding_window=None), dict(target_modules=SOME), dtype=torch.bfloat16,
                        old=old_config(lambda config: config.pop("head_dim"))),
    "qwen2": case("Qwen2", dict(DECODER, tie_word_embeddings=True)),
    "qwen2-window": case("Qwen2", dict(DECODER, use_sliding_window=True, sliding_window=5, max_window_layers=1), dict(target_modules=SOME)),
    "qwen2-old": case("Qwen2", dict(DECODER), dict(target_modules=SOME), shard=8000,
                      old=old_config(lambda config: config.update(sliding_window=5, max_window_layers=0, use_sliding_window=False))),
    "gemma": case("Gemma", dict(DECODER, head_dim=8)),
    "gemma-old": case("Gemma", dict(DECODER, num_key_value_heads=1, head_dim=8), dict(target_modules=SOME),
                      old=old_config(lambda config: config.update(hidden_act="gelu", hidden_activation=None))),
    "gpt2": case("GPT2", GPT2, GPT2_ADAPTER),
    "gpt2-old": case("GPT2", GPT2, dict(GPT2_ADAPTER, target_modules=["c_attn"]), old=gpt2_of_the_hub),
    "bert": case("Bert", dict(SHAPE, num_labels=3), BERT_ADAPTER, pairs=True),
    "bert-old": case("Bert", dict(SHAPE), dict(BERT_ADAPTER, target_modules=["query", "key", "value", "dense"], exclude_modules="classifier"),
                     old=bert_of_the_hub),
    "roberta": case("Roberta", dict(ROBERTA, num_labels=2), BERT_ADAPTER),
    "roberta-old": case("Roberta", dict(ROBERTA, num_labels=2), BERT_ADAPTER, old=roberta_of_the_hub, dtype=torch.float16),
    "full-llama": case("Llama", dict(DECODER), full=True),
    "full-gemma": case("Gemma", dict(DECODER, head_dim=8), full=True),
    "full-qwen2": case("Qwen2", dict(DECODER, tie_word_embeddings=True), full=True),
    "full-gpt2": case("GPT2", GPT2, full=True),
    "full-bert": case("Bert", dict(SHAPE, num_labels=3), full=True, pairs=True),
    "full-roberta": case("Roberta", dict(ROBERTA, num_labels=2), full=True),
}


def classifies(family):
    return family in ("Bert", "Roberta")


def model_class(family):
    kinds = {"GPT2": "LMHeadModel"}
    return getattr(transformers, family + ("ForSequenceClassification" if classifies(family) else kinds.get(family, "ForCausalLM")))


def fresh_base(family, settings):
    """Weights large enough that attention is not flat and that every bias and norm matters."""
    config = getattr(transformers, family + "Config")(**settings)
    base = model_class(family)(config).float()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            elif re.search(r"embed|wte|wpe", name):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / math.sqrt(16))
    return base


def write_base(folder, base, how):
    base.to(how.get("dtype", torch.float32)).save_pretrained(folder, max_shard_size=how.get("shard", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "old" in how:
        files = sorted(folder.glob("*.safetensors"))
        config = json.loads((folder / "config.json").read_text())
        for file in files:
            tensors = how["old"](config, load_file(file)) if file is files[0] else load_file(file)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_base(folder, family):
    # Dropout off: a base is compared, not a training with noise. Eager attention is the plainest definition.
    off = {"GPT2": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)}
    off.update({name: dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) for name in ("Bert", "Roberta")})
    model = model_class(family).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **off.get(family, {}))
    model.config.use_cache = False
    return model


def with_adapter(base, folder, settings):
    """Makes a start, writes it, and reads it back onto a base that it has not touched."""
    defaults = dict(r=2, lora_alpha=4, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, peft.LoraConfig(**{**defaults, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    write_adapter(model, folder)


def write_adapter(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    file = folder / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": None}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT keeps a set
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_batch(family, how, labels_count):
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(3, VOCABULARY, (SEQUENCES, LENGTH), generator=draw)
    if not classifies(family):
        ids[:, 0] = 1
        labels = ids.clone()
        labels[:, :4] = -100
        labels[2, -3:] = -100
        batch = dict(input_ids=ids, labels=labels)
        if how.get("ragged"):
            mask = torch.ones_like(ids)
            mask[0, -6:], mask[1, -1:] = 0, 0
            ids[mask == 0], labels[mask == 0] = 0, -100
            batch["attention_mask"] = mask
        return batch
    mask = torch.ones_like(ids)
    mask[1, -5:], mask[2, -8:] = 0, 0
    ids[mask == 0] = 1 if family == "Roberta" else 0
    batch = dict(input_ids=ids, attention_mask=mask, labels=torch.randint(0, labels_count, (SEQUENCES,), generator=draw))
    if how.get("pairs"):
        batch["token_type_ids"] = (torch.arange(LENGTH)[None] >= torch.tensor([[6], [4], [3]])).long() * mask
    return batch


def stored_name(name):
    return name.replace(".default", "").replace("modules_to_save.", "")


def train(model, batch):
    """STEPS steps; losses, and logits and gradients of the first."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, tensors = [], dict(batch)
    for step in range(STEPS):
        result = model(**batch)
        losses.append(result.loss.item())
        result.loss.backward()
        if step == 0:
            tensors["logits"] = result.logits.detach()
            if result.logits.ndim == 3 and "attention_mask" in batch:
                tensors["logits"] = result.logits.detach() * batch["attention_mask"][..., None]
            tensors.update({"grad." + stored_name(name): parameter.grad.clone() for name, parameter in trained.items()})
        optimiser.step()
        optimiser.zero_grad()
    return losses + [model(**batch).loss.item()], tensors


def make(out, name):
    how = CASES[name]
    torch.manual_seed(SEED)
    family, folder = how["family"], out / name
    shutil.rmtree(folder, ignore_errors=True)
    write_base(folder / "base", fresh_base(family, how["settings"]), how)
    model = read_base(folder / "base", family)
    if not how.get("full"):
        with_adapter(model, folder / "adapter_start", how["adapter"])
        # The start of a base without a classifier lies in the adapter alone: what was drawn here is not used again.
        model = peft.PeftModel.from_pretrained(read_base(folder / "base", family), folder / "adapter_start", is_trainable=True)
    # `train()` would only switch dropout on, which is zero everywhere here.
    losses, tensors = train(model.eval(), make_batch(family, how, model.config.num_labels))
    if how.get("full"):
        model.save_pretrained(folder / "end")
        for extra in ("config.json", "generation_config.json"):
            (folder / "end" / extra).unlink(missing_ok=True)
    else:
        write_adapter(model, folder / "adapter_end")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "tensors.safetensors")
    optimiser = dict(name="AdamW", lr=LEARNING_RATE, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, schedule="constant")
    loss = "mean over the labels that are not -100" + ("" if classifies(family) else ", shifted by one")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    reference = dict(case=name, losses=losses, steps=STEPS, optimiser=optimiser, loss=loss, versions=versions)
    (folder / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name:16} loss {losses[0]:.5f} -> {losses[-1]:.5f}  {size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for chosen in sys.argv[2:] or CASES:
        make(pathlib.Path(sys.argv[1]), chosen)
