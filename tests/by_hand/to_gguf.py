"""Writes a Llama of HF transformers as a GGUF file for llama.cpp: weights f32, f16 or bf16, a byte-level vocabulary as it is.

Run by hand in an environment with torch, safetensors and gguf; decode_speed.py does so by itself:

    python tests/by_hand/to_gguf.py MODEL_DIR OUT.gguf [f32 | f16 | bf16]
"""

import json
import pathlib
import sys

import gguf
import numpy
import safetensors
import torch

TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16}
FILES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "bf16": gguf.LlamaFileType.MOSTLY_BF16}


def permuted(weight, heads):
    """Rows of a query or key projection as llama.cpp turns them: neighbours in pairs, not the first half beside the second."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def vocabulary(writer, folder, size):
    described = json.loads((folder / "tokenizer.json").read_text())
    model, added = described["model"], {token["content"]: token["id"] for token in described["added_tokens"]}
    assert model["type"] == "BPE" and not model.get("byte_fallback"), "only byte-level vocabularies are written"
    texts = {number: text for text, number in {**model["vocab"], **added}.items()}
    kinds = dict.fromkeys(range(size), gguf.TokenType.UNUSED)
    kinds |= dict.fromkeys(texts, gguf.TokenType.NORMAL) | dict.fromkeys(added.values(), gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(number, f"[unused {number}]") for number in range(size)])
    writer.add_token_types([kinds[number] for number in range(size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])


def write(folder, out, kind="f32"):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    assert config["architectures"] == ["LlamaForCausalLM"] and rope.get("rope_type", "default") == "default", "a plain Llama is expected"
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads

    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name(folder.name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(FILES[kind])
    vocabulary(writer, folder, config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, "pt") as weights:
            for name in weights.keys():
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                weight = weights.get_tensor(name).to(torch.float32).numpy()
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    weight = permuted(weight, heads if "q_proj" in name else kv_heads)
                as_kind = TYPES[kind] if weight.ndim > 1 else TYPES["f32"]
                weight = gguf.quants.quantize(numpy.ascontiguousarray(weight), as_kind)
                writer.add_tensor(names.get_name(name, (".weight",)), weight, raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


if __name__ == "__main__":
    write(*sys.argv[1:])
