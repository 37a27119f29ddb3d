"""Tokens a second of `mingle serve`, of HF transformers and of llama.cpp on the same CPU: one model, one prompt, greedy, one stream and
eight.

Run by hand in an environment with torch and transformers, on a quiet machine:

    python tests/by_hand/decode_speed.py MODEL_DIR [--mingle target/release/mingle] [--tokens 200] [--threads 2]
    python tests/by_hand/decode_speed.py --drawn 1024x12 --tokenizer-of MODEL_DIR ...     a Llama of drawn weights: hidden size and layers

llama.cpp takes part (the environment then has gguf as well) in one way or both:

    --llama-server xllamacpp     the server of that package, whose Linux wheel is built for AVX2; or the path of a `llama-server`
    --llama-cpp FOLDER           its library, without HTTP: every step one batch of all streams. FOLDER has libllama and the CPU
                                 backends, as `npm pack @node-llama-cpp/linux-x64` brings them (package/bins/linux-x64); the backend is
                                 the one llama.cpp takes for this CPU, or that of --llama-cpu (haswell: AVX2)
    --gguf f32,bf16              the weights it is given; its cache of keys and values is its default, f16

Each side is timed from the request to the last of `--tokens` new tokens, prompt included, after a warm-up; the sides take turns,
a second apart (in which threads that wait by spinning come to rest), and the best of `--repeats` counts for each. mingle and
llama.cpp's server answer over HTTP, transformers by `generate` with its cache, at eight streams as one batch of eight equal prompts; no
side has the prompt from an earlier request. The greedy answers are compared with those of transformers. Where other programs use the
cores, llama.cpp's figures fall many times more than the rest, since its threads wait for each other by spinning.

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
arguments.add_argument("--precision", default="f32", help="mingle's")
arguments.add_argument("--llama-server")
arguments.add_argument("--llama-cpp")
arguments.add_argument("--llama-cpu")
arguments.add_argument("--gguf", default="f32")
arguments.add_argument("--streams", default="1,8")
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
work = tempfile.TemporaryDirectory()


def drawn(shape, like):
    """A Llama of drawn weights, with the tokenizer of another."""
    hidden, layers = map(int, shape.split("x"))
    vocabulary = json.loads((pathlib.Path(like) / "config.json").read_text())["vocab_size"]
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256), vocab_size=vocabulary, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2)
    folder = pathlib.Path(work.name) / shape
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((pathlib.Path(like) / name).read_bytes())
    return folder


folder = drawn(arguments.drawn, arguments.tokenizer_of) if arguments.drawn else pathlib.Path(arguments.model)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
numbers = torch.randint(3, model.config.vocab_size, (arguments.prompt_tokens - 1,)).tolist()
prompt = [model.config.bos_token_id, *numbers]
processes = []


def at_once(ask, streams):
    with concurrent.futures.ThreadPoolExecutor(streams) as threads:
        return list(threads.map(lambda _: ask(), range(streams)))


def mingle():
    command = [arguments.mingle, "serve", "--base", str(folder), "--precision", arguments.precision, "--listen", "127.0.0.1:0", "--json"]
    server = subprocess.Popen([*command, "--home", work.name + "/home"], stdout=subprocess.PIPE, text=True)
    processes.append(server)
    url = json.loads(server.stdout.readline())["url"]

    def ask():
        body = dict(prompt=prompt, max_tokens=arguments.tokens, temperature=0, ignore_eos=True)
        request = urllib.request.Request(url + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        assert answer["usage"]["completion_tokens"] == arguments.tokens, answer
        return answer["choices"][0]["text"]

    return lambda streams: at_once(ask, streams)


def theirs(streams):
    ids = torch.tensor([prompt] * streams)
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=arguments.tokens, max_new_tokens=arguments.tokens,
            pad_token_id=model.config.eos_token_id)
    return out[:, ids.shape[1] :].tolist()


def llama_cpp_sides():
    import llama_cpp
    import to_gguf

    context = -(-(len(prompt) + arguments.tokens) // 256) * 256
    library = llama_cpp.Library(arguments.llama_cpp, arguments.threads, arguments.llama_cpu) if arguments.llama_cpp else None
    if library:
        print(f"llama.cpp library: {library.about}")
    for kind in arguments.gguf.split(","):
        path = to_gguf.write(folder, f"{work.name}/{kind}.gguf", kind)
        if arguments.llama_server:
            server = llama_cpp.Server(arguments.llama_server, path, context, arguments.threads, max(counts), f"{work.name}/{kind}.log")
            processes.append(server.process)
            server.wait()
            print(f"llama.cpp server: {server.about()}")
            yield f"llama.cpp server {kind}", lambda streams, server=server: at_once(lambda: server.ask(prompt, arguments.tokens), streams)
        if library:
            loaded = library.model(path)
            made = {n: llama_cpp.Streams(library, loaded, model.config.vocab_size, model.config.eos_token_id, context, n) for n in counts}
            yield f"llama.cpp library {kind}", lambda streams, made=made: made[streams].answer(prompt, arguments.tokens)


def timed(run, streams):
    began = time.perf_counter()
    result = run(streams)
    return streams * arguments.tokens / (time.perf_counter() - began), result


def same(answers, ids):
    """Whether all of a side's greedy answers, texts or tokens, are that of transformers."""
    if isinstance(answers[0], str):
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        text = tokenizer.decode(prompt + ids, skip_special_tokens=True)
        return "yes" if all(text.endswith(answer) for answer in answers) else "no"
    equal = min(next((place for place, pair in enumerate(zip(answer, ids)) if pair[0] != pair[1]), len(ids)) for answer in answers)
    return "yes" if equal == len(ids) else f"the first {equal} tokens"


try:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    about = f"torch {torch.__version__}, transformers {transformers.__version__}, {arguments.threads} threads"
    print(f"{folder}: {parameters:.1f} M parameters, {len(prompt)} + {arguments.tokens} tokens, {about}")
    counts = [int(count) for count in arguments.streams.split(",")]
    sides = {f"mingle {arguments.precision}": mingle(), "transformers f32": theirs}
    if arguments.llama_server or arguments.llama_cpp:
        sides.update(llama_cpp_sides())
    for streams in counts:
        best, answers = dict.fromkeys(sides, 0.0), {side: run(streams) for side, run in sides.items()}
        for _ in range(arguments.repeats):
            for side, run in sides.items():
                time.sleep(1)
                best[side] = max(best[side], timed(run, streams)[0])
        ours = next(iter(best.values()))
        for side, rate in best.items():
            as_theirs = same(answers[side], answers["transformers f32"][0])
            print(f"  {streams} stream{'s' if streams > 1 else ' '}  {side:21} {rate:8.1f} tokens/s, mingle to it {ours / rate:5.2f}; "
                  f"greedy as transformers: {as_theirs}", flush=True)
finally:
    for process in processes:
        process.terminate()
        process.wait()
