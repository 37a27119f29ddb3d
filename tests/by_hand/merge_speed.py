"""How fast the exact mean of ten adapters of 40 million elements is, beside PEFT's
`add_weighted_adapter(combination_type="linear")` and beside FedAvg over numpy arrays as Flower does it: all in memory, on one
core, in seconds of the processor, the least of several runs.

Run by hand, from the root, in an environment with torch, transformers, peft and numpy:

    cargo build --release -p mingle-protocol --example mean_speed
    taskset -c 0 python tests/by_hand/merge_speed.py

Flower 1.42 has three ways, written here as there, without the (de)serialisation that it does besides: `aggregate` and
`aggregate_inplace` (flwr/server/strategy/aggregate.py), and that of its newer strategies
(flwr/serverapp/strategy/strategy_utils.py). What PEFT's linear combination computes is not the mean of the updates, nor even
of the factors (their weights are square roots): only its speed is compared.

Last run with torch 2.15.0, numpy 2.4.6 and peft 0.21.2.
"""

import functools
import json
import subprocess
import time

import numpy
import peft
import torch

MEMBERS, MODULES, WIDTH, RANK, RUNS = 10, 152, 2048, 64, 5
torch.set_num_threads(1)
counts = [100 + member for member in range(MEMBERS)]
total = sum(counts)
print("numpy", numpy.__version__, "torch", torch.__version__, "peft", peft.__version__)


def least(run):
    times = []
    for _ in range(RUNS):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)


# Ours, in a process of its own before anything large lies in this one.
ours = json.loads(subprocess.check_output(["target/release/examples/mean_speed"]))
assert ours["members"] == MEMBERS and ours["elements"] == MODULES * 2 * WIDTH * RANK

draw = numpy.random.default_rng(1)
adapters = [[draw.random((RANK, WIDTH), dtype=numpy.float32) - 0.5 for _ in range(2 * MODULES)] for _ in range(MEMBERS)]


def flower_aggregate():
    weighted = [[layer * count for layer in adapter] for adapter, count in zip(adapters, counts)]
    return [functools.reduce(numpy.add, layers) / total for layers in zip(*weighted)]


def flower_inplace():
    factors = numpy.asarray([count / total for count in counts])

    def inplace(x, y, operation):
        return operation(x, y, out=x) if numpy.can_cast(y, x.dtype, casting="same_kind") else operation(x, numpy.array(y, x.dtype), out=x)

    # Flower's arrays are fresh from the wire; here a copy of what is kept takes their place.
    fresh = lambda adapter: (layer.copy() for layer in adapter)
    found = [inplace(x, factors[0], numpy.multiply) for x in fresh(adapters[0])]
    for index, adapter in enumerate(adapters[1:], start=1):
        scaled = (inplace(x, factors[index], numpy.multiply) for x in fresh(adapter))
        found = [inplace(x, y, numpy.add) for x, y in zip(found, scaled)]
    return found


def flower_records():
    found = {}
    for adapter, count in zip(adapters, counts):
        for key, value in enumerate(adapter):
            if key not in found:
                found[key] = value * (count / total)
            else:
                found[key] += value * (count / total)
    return found


theirs = {
    "Flower, aggregate": least(flower_aggregate),
    "Flower, aggregate_inplace": least(flower_inplace),
    "Flower, aggregate_arrayrecords": least(flower_records),
}
del adapters


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # Nothing reads these weights: they are never filled.
        layer = lambda: torch.nn.utils.skip_init(torch.nn.Linear, WIDTH, WIDTH, bias=False)
        self.layers = torch.nn.ModuleList(layer() for _ in range(MODULES))


config = lambda: peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=r"layers\.\d+")
model = peft.get_peft_model(Base(), config(), adapter_name="0")
for member in range(1, MEMBERS):
    model.add_adapter(str(member), config())
with torch.no_grad():
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            tensor.fill_(0.01)


def peft_linear():
    model.add_weighted_adapter([str(member) for member in range(MEMBERS)], [count / total for count in counts], "merged", combination_type="linear")


times = []
for _ in range(RUNS):
    begun = time.process_time()
    peft_linear()
    times.append(time.process_time() - begun)
    model.delete_adapter("merged")
theirs["PEFT, linear"] = min(times)

print(f"{MEMBERS} adapters of {ours['elements']:,} elements")
ways = {"as they come": "one_by_one_s", "all at hand, running sums": "together_s", "all at hand, made anew": "anew_s"}
for name, key in ways.items():
    print(f"{'ours, ' + name:32} {ours[key]:7.3f} s")
print(f"{'':32} {'':9}   times ours: {', '.join(ways)}")
for name, seconds in theirs.items():
    print(f"{name:32} {seconds:7.3f} s", *(f"{seconds / ours[key]:12.1f}" for key in ways.values()))
print(f"a running mean takes its tenth member in {ours['member_10_s']:.4f} s, its thousandth in {ours['member_1000_s']:.4f} s")
