"""Speed and memory of training on the CPU, held against torch and PEFT.

    cargo build --release -p mingle-trainer --example lora_bench
    python tests/by_hand/speed_against_torch.py [--threads 2] [--rounds 3] [--full] [--recompute] [--bf16] [--hidden 512] ...

Runs mingle's `lora_bench` and the same training in torch in turn, because the machine is never equally busy twice, and
prints the ratio of each round and their medians: of the clock, and of processor time, which other programs disturb less.
torch runs twice a round, with the C library's allocator as it is and as mingle tunes it.
Needs torch, transformers and peft.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}


def arguments():
    parser = argparse.ArgumentParser(description="Speed and memory of training on the CPU, held against torch and PEFT.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="steps of a run; the first is not counted")
    parser.add_argument("--full", action="store_true", help="train every weight instead of LoRA")
    parser.add_argument("--recompute", action="store_true", help="keep activations at block boundaries only")
    parser.add_argument("--bf16", action="store_true", help="frozen weights and their products in bf16; torch's model in bf16")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--intermediate", type=int, default=1376)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--bench", type=Path, default=ROOT / "target/release/examples/lora_bench", help="mingle's benchmark")
    parser.add_argument("--torch", action="store_true", help="only torch's side, once")
    return parser.parse_args()


def torch_side(chosen):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=chosen.hidden,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.hidden // 64,
        num_key_value_heads=max(chosen.hidden // 128, 1),
        intermediate_size=chosen.intermediate,
        vocab_size=chosen.vocabulary,
        max_position_embeddings=max(2048, chosen.seq),
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    if chosen.bf16:
        model = model.to(torch.bfloat16)
    if not chosen.full:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=chosen.rank, lora_alpha=16, target_modules=targets, lora_dropout=0.0))
    if chosen.recompute:
        if not chosen.full:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    tokens = torch.randint(0, chosen.vocabulary, (chosen.batch, chosen.seq))
    times, processor = [], []
    for _ in range(chosen.steps):
        began, began_processor = time.perf_counter(), time.process_time()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    rate = chosen.batch * chosen.seq / statistics.median(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"RESULT torch {rate:.0f} tok/s processor seconds a step {statistics.mean(processor[1:]):.3f} maxrss {peak} MB")


def measured(command, extra):
    """Tokens per second, processor seconds a step, megabytes."""
    output = subprocess.run(command, env={**os.environ, **extra}, capture_output=True, text=True)
    line = next((line for line in output.stdout.splitlines() if line.startswith("RESULT")), None)
    if line is None:
        sys.exit(f"{command[0]} gave no result:\n{output.stdout}{output.stderr}")
    print(line, flush=True)
    numbers = re.search(r"([\d.]+) tok/s.* processor seconds a step ([\d.]+) maxrss (\d+) MB", line)
    return tuple(float(number) for number in numbers.groups())


def main():
    chosen = arguments()
    if chosen.torch:
        return torch_side(chosen)
    shared = []
    for name in ("threads", "steps", "hidden", "layers", "intermediate", "vocabulary", "batch", "seq", "rank"):
        shared += [f"--{name}", str(getattr(chosen, name))]
    shared += [f"--{name}" for name in ("full", "recompute", "bf16") if getattr(chosen, name)]
    torch = [sys.executable, __file__, "--torch", *shared]
    rounds = []
    for _ in range(chosen.rounds):
        mingle = measured([str(chosen.bench), *shared], {})
        rounds.append((mingle, measured(torch, {}), measured(torch, TUNED)))
    print("\nmingle against torch     " + "  ".join(f"round {index + 1}" for index in range(len(rounds))) + "   median")
    for name, which in (("default malloc", 1), ("tuned malloc", 2)):
        for what, ratio in (
            ("tokens/s", lambda ours, theirs: ours[0] / theirs[0]),
            ("processor", lambda ours, theirs: theirs[1] / ours[1]),
            ("memory", lambda ours, theirs: ours[2] / theirs[2]),
        ):
            ratios = [ratio(found[0], found[which]) for found in rounds]
            print(f"{name:15} {what:10}" + "".join(f"{value:8.2f} " for value in ratios) + f"{statistics.median(ratios):8.2f}")


main()
