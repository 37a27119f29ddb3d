"""Tokens a second of `mingle serve` and of HF transformers on the same CPU: one model, one prompt, greedy, f32, one stream and eight.

Run by hand in an environment with torch and transformers, on a quiet machine:

    python tests/by_hand/decode_speed.py MODEL_DIR [--mingle target/release/mingle] [--tokens 200] [--threads 2]
    python tests/by_hand/decode_speed.py --drawn 1024x12 ...     a Llama of drawn weights: hidden size and layers

Each side is timed from the request to the last of `--tokens` new tokens, prompt included, after a warm-up; the sides take turns,
and the best of `--repeats` counts for each. mingle answers over HTTP, transformers by `generate` with its cache, at eight streams as
one batch of eight equal prompts. The greedy texts of both are compared as well.

Last run: see docs/serving.md.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import tempfile
import time
import urllib.request

arguments = argparse.ArgumentParser()
arguments.add_argument("model", nargs="?")
arguments.add_argument("--drawn")
arguments.add_argument("--tokenizer-of", help="a model directory whose tokenizer a drawn model takes")
arguments.add_argument("--mingle", default="target/release/mingle")
arguments.add_argument("--tokens", type=int, default=200)
arguments.add_argument("--prompt-tokens", type=int, default=32)
arguments.add_argument("--threads", type=int, default=os.cpu_count())
arguments.add_argument("--repeats", type=int, default=3)
arguments = arguments.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", RAYON_NUM_THREADS=str(arguments.threads), TOKENIZERS_PARALLELISM="false")

import torch
import transformers

torch.set_num_threads(arguments.threads)
torch.manual_seed(0)


def drawn(shape, like):
    """A Llama of drawn weights, with the tokenizer of another."""
    hidden, layers = map(int, shape.split("x"))
    vocabulary = json.loads((pathlib.Path(like) / "config.json").read_text())["vocab_size"]
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256), vocab_size=vocabulary, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2)
    folder = pathlib.Path(tempfile.mkdtemp())
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((pathlib.Path(like) / name).read_bytes())
    return folder


folder = drawn(arguments.drawn, arguments.tokenizer_of) if arguments.drawn else pathlib.Path(arguments.model)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
numbers = torch.randint(3, model.config.vocab_size, (arguments.prompt_tokens - 1,)).tolist()
prompt = [model.config.bos_token_id, *numbers]

command = [arguments.mingle, "serve", "--base", str(folder), "--listen", "127.0.0.1:0", "--json", "--home", tempfile.mkdtemp()]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
url = json.loads(server.stdout.readline())["url"]


def ask(_):
    body = dict(prompt=prompt, max_tokens=arguments.tokens, temperature=0, ignore_eos=True)
    request = urllib.request.Request(url + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    assert answer["usage"]["completion_tokens"] == arguments.tokens, answer
    return answer["choices"][0]["text"]


def ours(streams):
    with concurrent.futures.ThreadPoolExecutor(streams) as threads:
        return list(threads.map(ask, range(streams)))


def theirs(streams):
    ids = torch.tensor([prompt] * streams)
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=arguments.tokens, max_new_tokens=arguments.tokens,
            pad_token_id=model.config.eos_token_id)
    return out[:, ids.shape[1] :]


def timed(run, streams):
    began = time.perf_counter()
    result = run(streams)
    return streams * arguments.tokens / (time.perf_counter() - began), result


try:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    about = f"torch {torch.__version__}, transformers {transformers.__version__}, {arguments.threads} threads"
    print(f"{folder}: {parameters:.1f} M parameters, {len(prompt)} + {arguments.tokens} tokens, f32, {about}")
    for streams in (1, 8):
        ours(streams), theirs(streams)
        best = [0.0, 0.0]
        for _ in range(arguments.repeats):
            (mine, text), (other, ids) = timed(ours, streams), timed(theirs, streams)
            best = [max(best[0], mine), max(best[1], other)]
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        both = tokenizer.decode(prompt + ids[0].tolist(), skip_special_tokens=True)
        same = both.endswith(text[0])
        print(f"  {streams} stream{'s' if streams > 1 else ' '}: mingle {best[0]:8.1f} tokens/s, transformers {best[1]:8.1f}, "
              f"ratio {best[0] / best[1]:.2f}; same greedy text: {'yes' if same else 'no'}")
finally:
    server.terminate()
