"""Writes number.json, merge.json, rounds.json, rules.json, standings.json, verdicts.json and links.json: golden vectors from a second implementation of docs/protocol.md's arithmetic.

Python's integers and fractions do the arithmetic exactly, and a BLAKE3 written from its paper (inputs of one chunk)
does the seeded draw; nothing is shared with the Rust code. Needs only Python 3.9: `python3 write_vectors.py`.
"""

import json
import math
import struct
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).parent
GRID = 1 << 28

# --- BLAKE3, inputs of at most 1024 bytes -----------------------------------------------------------------------------

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CHUNK_START, CHUNK_END, ROOT, CONTEXT, MATERIAL = 1, 2, 8, 32, 64
LANES = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]


def compress(chain, block, counter, length, flags):
    v = list(chain) + IV[:4] + [counter & 0xFFFFFFFF, counter >> 32, length, flags]
    for _ in range(7):
        for lane, (a, b, c, d) in enumerate(LANES):
            for word, first, second in ((block[2 * lane], 16, 12), (block[2 * lane + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
                v[d] = turn(v[d] ^ v[a], first)
                v[c] = (v[c] + v[d]) & 0xFFFFFFFF
                v[b] = turn(v[b] ^ v[c], second)
        block = [block[i] for i in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ chain[i] for i in range(8)]


def turn(word, by):
    return (word >> by | word << (32 - by)) & 0xFFFFFFFF


def stream(key, data, flags, length):
    assert len(data) <= 1024
    blocks = [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
    chain = key
    for index, block in enumerate(blocks):
        words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
        here = flags | (CHUNK_START if index == 0 else 0)
        if index < len(blocks) - 1:
            chain = compress(chain, words, 0, 64, here)[:8]
        else:
            out = b"".join(
                struct.pack("<16I", *compress(chain, words, counter, len(block), here | CHUNK_END | ROOT))
                for counter in range(-(-length // 64)))
            return out[:length]


def domain_stream(domain, rest, length):
    context = stream(IV, b"mingle 2026-11 domain-separated hash", CONTEXT, 32)
    key = list(struct.unpack("<8I", context))
    return stream(key, struct.pack("<Q", len(domain)) + domain.encode() + rest, MATERIAL, length)


def blake3(data):
    """Plain BLAKE3 of one chunk."""
    return stream(IV, data, 0, 32).hex()


assert blake3(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

# --- the arithmetic ---------------------------------------------------------------------------------------------------


def f32_value(bits):
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def f32_bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def points(value):
    return round(Fraction(value) * GRID)  # Python rounds half to even


def mean_bits(total, weight):
    return f32_bits(float(total) / float(weight * GRID))


def draw(seed, tensor, count, bound):
    data = seed + struct.pack("<Q", len(tensor)) + tensor.encode()
    words = struct.unpack(f"<{count}I", domain_stream("seeded-tensor/1", data, 4 * count))
    return [f32_bits((2 * (word >> 8) + 1 - (1 << 24)) / (1 << 24) * bound) for word in words]


def within_inputs(inputs):
    return 1.0 / math.sqrt(float(inputs))


def within_projection(rank):
    return math.sqrt(3.0 / float(rank))


# --- number.json ------------------------------------------------------------------------------------------------------

def number_vectors():
    bits = [0, 1, 0x007FFFFF, 0x00800000, 0x31000000, 0x31800000, 0x31C00000, 0x32200000, 0x30FFFFFF, 0x31000001,
            0x3DCCCCCD, 0x3F800000, 0x3F7FFFFF, 0x41800000, 0x417FFFFF, 0x3D7FFFFF, 0x3D800001, 0x323FFFFF, 0x34123457]
    bits += [b | 1 << 31 for b in bits]
    sums = [(1, 1), (-1, 3), (3, 2), (1 << 32, 1), ((1 << 63) - (1 << 32), (1 << 31) - 1), ((1 << 53) + 1, 1 << 21),
            ((1 << 53) + 3, 1 << 21), (-(1 << 62) - 513, 1 << 30), (123456789012345678, 1000003), (0, 7),
            ((1 << 24) + 1, 1), ((1 << 24) + 3, 1), ((1 << 25) + 2, 2)]
    seed = bytes(range(32))
    tensors = [("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", 64), ("a", 1), ("a", 3)]
    return {
        "quantise": [{"bits": b, "points": points(f32_value(b))} for b in bits],
        "finalise": [{"sum": s, "weight": w, "bits": mean_bits(s, w)} for s, w in sums],
        "seeded": [{"seed": list(seed), "tensor": t, "inputs": n, "bits": draw(seed, t, 300, within_inputs(n))} for t, n in tensors],
        "projection": [{"seed": list(seed), "tensor": t, "rank": n, "bits": draw(seed, t, 300, within_projection(n))}
                       for t, n in (("base_model.model.m.lora_A.weight", 8), ("a", 3))],
    }


# --- merge.json -------------------------------------------------------------------------------------------------------

SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def write_file(tensors, dtype, data):
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in sorted(tensors):
        end = begin + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert len(data) == begin
    return struct.pack("<Q", len(text)) + text + data


def numbers(start, count):
    """Multiples of 2^-30 over the whole range, most of them not on the grid, many of them tiny."""
    state = start
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield ((state >> 29) % (1 << 35) - (1 << 34)) / (1 << 30) / (1 << (state >> 20) % 28)


def encode(value, dtype):
    if dtype == "F32":
        return struct.pack("<f", value)
    if dtype == "F16":
        return struct.pack("<e", value)
    return struct.pack("<I", f32_bits(value))[2:]  # cut, not rounded: any bf16 will do


def decode(data, dtype):
    if dtype == "F32":
        return [Fraction(v) for v, in struct.iter_unpack("<f", data)]
    if dtype == "F16":
        return [Fraction(v) for v, in struct.iter_unpack("<e", data)]
    return [f32_value(b << 16) for b, in struct.iter_unpack("<H", data)]


def merge_vectors():
    modules = [{"name": "model.layers.10.up", "inputs": 3, "outputs": 5}, {"name": "model.layers.2.up", "inputs": 4, "outputs": 1}]
    rank = 2
    tensors = []
    for module in modules:
        tensors.append((f"base_model.model.{module['name']}.lora_A.weight", [rank, module["inputs"]]))
        tensors.append((f"base_model.model.{module['name']}.lora_B.weight", [module["outputs"], rank]))
    count = sum(shape[0] * shape[1] for _, shape in tensors)
    merges = []
    for members in ([("F32", 1)], [("F32", 3), ("BF16", 1000)], [("F16", 7), ("F32", 2**31 - 10)],
                    [("F32", 11), ("F16", 500), ("BF16", 1), ("F32", 99999)]):
        adapters, sums = [], [0] * count
        for index, (dtype, weight) in enumerate(members):
            data = b"".join(encode(v, dtype) for v in numbers(1000 * len(merges) + index, count))
            sums = [s + weight * points(v) for s, v in zip(sums, decode(data, dtype))]
            adapters.append({"weight": weight, "file": write_file(tensors, dtype, data).hex()})
        total = sum(weight for _, weight in members)
        merged = write_file(tensors, "F32", b"".join(struct.pack("<I", mean_bits(s, total)) for s in sums))
        merges.append({"adapters": adapters, "merged": merged.hex(), "hash": blake3(merged)})
    shape = {"rank": rank, "alpha": 4, "seed": "07" * 32, "modules": modules}
    return {"shape": shape, "merges": merges}


# --- rounds.json: identity, what travels, and the merged file, for every kind -------------------------------------------

def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def number(*values):
    return struct.pack(f"<{len(values)}Q", *values)


def tensor_fields(tensors):
    return number(len(tensors)) + b"".join(text(t["name"]) + number(len(t["dims"]), *t["dims"]) for t in tensors)


def low_rank_fields(shape):
    modules = b"".join(text(m["name"]) + number(m["inputs"], m["outputs"]) for m in shape["modules"])
    return number(shape["rank"], shape["alpha"]) + bytes.fromhex(shape["seed"]) + number(len(shape["modules"])) + modules


def further_fields(shape):
    return text(shape.get("scaling", "standard")) + tensor_fields(shape.get("saved", []))


def kind_fields(name, shape):
    if name == "lora":
        plain = "scaling" not in shape and "saved" not in shape
        return text("lora" if plain else "lora/2") + low_rank_fields(shape) + (b"" if plain else further_fields(shape))
    if name == "frozen_a":
        return text("frozen-a") + low_rank_fields(shape) + further_fields(shape)
    if name == "subspace":
        lora = shape["lora"]
        return text("subspace") + low_rank_fields(lora) + further_fields(lora) + number(shape["seeds"], shape["interval"])
    return text("full") + tensor_fields(shape["weights"])


def key_fields(keys):
    return number(len(keys)) + b"".join(sorted(bytes.fromhex(key) for key in keys))


def rule_fields(rule):
    if isinstance(rule, str):
        return text(rule)
    (name, fields), = rule.items()
    return text(name.replace("_", "-")) + number(*fields.values())


def identity(manifest):
    (name, shape), = manifest["kind"].items()
    data = number(manifest["version"]) + text(manifest["name"])
    data += text(manifest["base"]["name"]) + bytes.fromhex(manifest["base"]["digest"])
    data += kind_fields(name, shape) + rule_fields(manifest["rule"])
    weight = manifest["weight"]
    data += text("equal") + number(1) if weight == "equal" else text("examples") + number(weight["examples"]["cap"])
    roster = manifest["roster"]
    data += number(manifest["member_max"])
    data += text("open") + number(0) if roster == "open" else text("members") + key_fields(roster["members"])
    data += number(0)
    if "founders" in manifest:
        founders = manifest["founders"]
        data += text("founders") + number(founders["threshold"]) + key_fields(founders["keys"])
    if "readers" in manifest:
        readers = manifest["readers"]
        data += text("readers") + (text("open") + number(0) if readers == "open" else text("listed") + key_fields(readers["listed"]))
    if "clip_millionths" in manifest:
        data += text("clip") + number(manifest["clip_millionths"])
    if "verdicts" in manifest:
        data += text("verdicts") + number(manifest["verdicts"]["approvals"])
    return domain_stream("round/1", data, 32).hex()


def file_tensors(name, shape):
    """What travels, and what is drawn: (name, shape) and (name, shape, bound)."""
    if name == "full":
        return [(t["name"], t["dims"]) for t in shape["weights"]], []
    lora = shape["lora"] if name == "subspace" else shape
    rank = lora["rank"] * (shape["seeds"] if name == "subspace" else 1)
    sent, drawn = [("base_model.model." + t["name"], t["dims"]) for t in lora.get("saved", [])], []
    for module in lora["modules"]:
        a, b = (f"base_model.model.{module['name']}.lora_{which}.weight" for which in "AB")
        sent.append((b, [module["outputs"], rank]))
        bound = within_projection(lora["rank"]) if name == "subspace" else within_inputs(module["inputs"])
        if name == "lora":
            sent.append((a, [rank, module["inputs"]]))
        else:
            drawn.append((a, [rank, module["inputs"]], bound))
    return sent, drawn


def round_vectors():
    seed = bytes(range(100, 132))
    plain = {"rank": 2, "alpha": 4, "seed": seed.hex(), "modules": [{"name": "h.0.q", "inputs": 3, "outputs": 4}]}
    saved = {"saved": [{"name": "classifier.bias", "dims": [2]}, {"name": "classifier.weight", "dims": [2, 3]}]}
    two = {**plain, "modules": plain["modules"] + [{"name": "h.10.q", "inputs": 5, "outputs": 2}]}
    kinds = [
        ("lora", plain),
        ("lora", {"scaling": "rslora", **plain, **saved}),
        ("frozen_a", two),
        ("frozen_a", {**plain, **saved}),
        ("subspace", {"seeds": 3, "interval": 10, "lora": {**two, "rank": 1, "alpha": 1}}),
        ("full", {"weights": [{"name": "norm.weight", "dims": [5]}, {"name": "h.0.q.weight", "dims": [4, 3]}]}),
    ]
    keys = [f"{byte:02x}" * 32 for byte in (0x9a, 0x03, 0x51, 0x22)]
    founders = {"keys": keys[:3], "threshold": 2}
    belonging = [{}] * len(kinds) + [
        {"founders": founders},
        {"founders": founders, "readers": "open"},
        {"roster": {"members": keys[1:]}, "founders": {"keys": keys[:1], "threshold": 1}, "readers": {"listed": keys[:2]}},
        {"roster": {"members": keys[:2]}, "readers": {"listed": []}},
    ]
    kinds += [("lora", plain)] * 4
    rounds = []
    for index, (name, shape) in enumerate(kinds):
        manifest = {"version": 1, "name": "vectors", "base": {"name": "tiny", "digest": "11" * 32}, "kind": {name: shape},
                    "rule": "mean", "weight": {"examples": {"cap": 1000}}, "member_max": 4, "roster": "open", **belonging[index]}
        sent, drawn = file_tensors(name, shape)
        count = sum(math.prod(shape) for _, shape in sent)
        adapters, sums = [], [0] * count
        for member, (dtype, weight) in enumerate((("F32", 3), ("BF16", 1000))):
            data = b"".join(encode(v, dtype) for v in numbers(77 * index + member, count))
            sums = [s + weight * points(v) for s, v in zip(sums, decode(data, dtype))]
            adapters.append({"weight": weight, "file": write_file(sent, dtype, data).hex()})
        means = iter(struct.pack("<I", mean_bits(s, 1003)) for s in sums)
        parts = {name: b"".join(next(means) for _ in range(math.prod(dims))) for name, dims in sorted(sent)}
        for tensor, dims, bound in drawn:
            parts[tensor] = b"".join(struct.pack("<I", bits) for bits in draw(seed, tensor, math.prod(dims), bound))
        whole = write_file([*sent, *((tensor, dims) for tensor, dims, _ in drawn)], "F32", b"".join(parts[n] for n in sorted(parts)))
        rounds.append({"manifest": manifest, "id": identity(manifest), "adapters": adapters, "merged": whole.hex(),
                       "hash": blake3(whole)})
    return {"rounds": rounds}


# --- rules.json: every rule beside the mean, and clipped means ----------------------------------------------------------

def dot(left, right):
    """In blocks of 1,024; in each eight sums that become one as a tree. Python's floats are those of IEEE-754."""
    total = 0.0
    for start in range(0, len(left), 1024):
        sums = [0.0] * 8
        for index in range(start, min(start + 1024, len(left))):
            sums[index % 8] += left[index] * right[index]
        a, b, c, d, e, f, g, h = sums
        total += ((a + b) + (c + d)) + ((e + f) + (g + h))
    return total


def plain(data, dtype):
    """As decode, but as floats: fractions know no negative zero, and a stack keeps it."""
    if dtype == "BF16":
        data, dtype = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2)), "F32"
    return [v for v, in struct.iter_unpack("<f" if dtype == "F32" else "<e", data)]


class Adapter:
    def __init__(self, name, shape, dtype, start, rank=None):
        lora = shape.get("lora", shape)
        sent, drawn = file_tensors(name, shape)
        if rank is not None:
            sent = [(t, [rank if d == lora["rank"] else d for d in dims]) for t, dims in sent]
        count = sum(math.prod(dims) for _, dims in sent)
        self.data = b"".join(encode(v, dtype) for v in numbers(start, count))
        self.file = write_file(sent, dtype, self.data)
        values, self.tensors = plain(self.data, dtype), {}
        for tensor, dims in sorted(sent):
            self.tensors[tensor] = (dims, values[:math.prod(dims)])
            values = values[math.prod(dims):]
        if name == "full":
            self.scale = 1.0
        else:
            seed = bytes.fromhex(lora["seed"])
            self.scale = float(lora["alpha"]) / (math.sqrt(lora["rank"]) if "scaling" in lora else float(lora["rank"]))
            for tensor, dims, bound in drawn:
                self.tensors[tensor] = (dims, [float(f32_value(b)) for b in draw(seed, tensor, math.prod(dims), bound)])
        self.drawn = {tensor for tensor, _, _ in drawn}


def product(one, other):
    total = 0.0
    for tensor, (dims, left) in sorted(one.tensors.items()):
        right = other.tensors[tensor][1]
        if ".lora_A." in tensor:
            continue
        if ".lora_B." not in tensor:
            total += 1.0 * dot(left, right)
            continue
        (_, a), (_, c) = (x.tensors[tensor.replace(".lora_B.", ".lora_A.")] for x in (one, other))
        r, s = (x.tensors[tensor][0][1] for x in (one, other))
        width = len(a) // r
        of_b = [dot(left[i::r], right[j::s]) for i in range(r) for j in range(s)]
        of_a = [dot(a[i * width:(i + 1) * width], c[j * width:(j + 1) * width]) for i in range(r) for j in range(s)]
        total += one.scale * other.scale * dot(of_b, of_a)
    return total


def clip_of(adapter, millionths):
    if millionths is None:
        return 1 << 24
    ratio = (float(millionths) / 1e6) / math.sqrt(max(product(adapter, adapter), 0.0))
    return 1 << 24 if ratio >= 1.0 else int(ratio * (1 << 24))


def krum(adapters, clips, faulty):
    """Places of those that are kept, of adapters in the order of their members' keys."""
    c = [clip / (1 << 24) for clip in clips]

    def distance(i, j):
        i, j = min(i, j), max(i, j)
        one, other = adapters[i], adapters[j]
        return max(c[i] * c[i] * product(one, one) + c[j] * c[j] * product(other, other) - 2.0 * (c[i] * c[j] * product(one, other)), 0.0)

    scores = []
    for i in range(len(adapters)):
        score = 0.0
        for d in sorted(distance(i, j) for j in range(len(adapters)) if j != i)[:len(adapters) - faulty - 2]:
            score += d
        scores.append((score, i))
    return sorted(i for _, i in sorted(scores)[:len(adapters) - faulty])


def stack(sent, adapters, weights, clips):
    order = sorted(range(len(adapters)), key=lambda i: blake3(adapters[i].file))
    rank = max(sum(a.tensors[t][0][0] for a in adapters) for t, _ in sent if ".lora_A." in t)
    tensors, data = [], b""
    for tensor, dims in sorted(sent):
        if ".lora_A." in tensor:
            rows = [v for i in order for v in adapters[i].tensors[tensor][1]]
            shape, out = [rank, dims[1]], rows + [0.0] * (rank * dims[1] - len(rows))
        else:
            shape, out = [dims[0], rank], []
            for row in range(dims[0]):
                line = []
                for i in order:
                    r = adapters[i].tensors[tensor][0][1]
                    factor = float(weights[i]) * adapters[i].scale * (clips[i] / (1 << 24)) / float(sum(weights))
                    line += [v * factor for v in adapters[i].tensors[tensor][1][row * r:(row + 1) * r]]
                out += line + [0.0] * (rank - len(line))
        tensors.append((tensor, shape))
        data += struct.pack(f"<{len(out)}f", *out)
    return write_file(tensors, "F32", data)


def rule_vectors():
    seed = bytes(range(100, 132))
    lora = {"rank": 2, "alpha": 3, "seed": seed.hex(), "modules": [{"name": "h.0.q", "inputs": 3, "outputs": 4}]}
    kinds = {
        "lora": lora,
        "frozen_a": {**lora, "scaling": "rslora"},
        "subspace": {"seeds": 2, "interval": 10, "lora": lora},
        "full": {"weights": [{"name": "h.0.q.weight", "dims": [4, 3]}]},
    }
    named = ["mean", "stack", {"trimmed_mean": {"trim": 1}}, "median", {"multi_krum": {"faulty": 1}}]
    vectors = []
    for name, shape in kinds.items():
        for rule in named:
            for clip in (None, 2_500_000):
                for members in (1, 5, 6):
                    weighs = rule in ("mean", "stack")
                    if rule == "mean" and clip is None or rule == "stack" and name != "lora" or members == 1 and rule not in ("stack", "mean"):
                        continue
                    vectors.append(rule_vector(name, shape, rule, clip, members, weighs, len(vectors)))
    return {"rules": vectors}


def rule_vector(name, shape, rule, clip, members, weighs, index):
    weight = {"examples": {"cap": 1000}} if weighs else "equal"
    manifest = {"version": 1, "name": "rules", "base": {"name": "tiny", "digest": "22" * 32}, "kind": {name: shape},
                "rule": rule, "weight": weight, "member_max": 7, "roster": "open"}
    if clip is not None:
        manifest["clip_millionths"] = clip
    rank = lambda member: 1 + member % 2 if rule == "stack" else None
    adapters = [Adapter(name, shape, ("F32", "BF16", "F16")[m % 3], 991 * index + m, rank(m)) for m in range(members)]
    weights = [1 + 100 * m if weighs else 1 for m in range(members)]
    clips = [clip_of(adapter, clip) for adapter in adapters]
    sent, drawn = file_tensors(name, shape)
    left_out = []
    if rule == "stack":
        merged = stack(sent, adapters, weights, clips)
    else:
        kept = list(range(members))
        if isinstance(rule, dict) and "multi_krum" in rule:
            kept = krum(adapters, clips, 1)
            left_out = [m for m in range(members) if m not in kept]
        parts = {}
        for tensor, dims in sent:
            steps = [1 << 24 if ".lora_A." in tensor else clip for clip in clips]
            columns = zip(*([round(Fraction(v) * steps[m] * 16) for v in adapters[m].tensors[tensor][1]] for m in kept))
            bits = []
            for column in columns:
                pairs = sorted(zip(column, (weights[m] for m in kept)))
                if rule == "median":
                    pairs = pairs[(members - 1) // 2:members // 2 + 1]
                elif isinstance(rule, dict) and "trimmed_mean" in rule:
                    pairs = pairs[1:-1]
                bits.append(mean_bits(sum(p * w for p, w in pairs), sum(w for _, w in pairs)))
            parts[tensor] = struct.pack(f"<{len(bits)}I", *bits)
        for tensor, dims, bound in drawn:
            parts[tensor] = b"".join(struct.pack("<I", b) for b in draw(bytes.fromhex(shape.get("lora", shape)["seed"]), tensor, math.prod(dims), bound))
        merged = write_file([*sent, *((t, dims) for t, dims, _ in drawn)], "F32", b"".join(parts[n] for n in sorted(parts)))
    return {"manifest": manifest, "id": identity(manifest), "merged": merged.hex(), "hash": blake3(merged), "left_out": left_out,
            "adapters": [{"weight": w, "file": a.file.hex(), "clip": c} for w, a, c in zip(weights, adapters, clips)]}


# --- standings.json: what founders sign --------------------------------------------------------------------------------

def standing_vectors():
    vectors = []
    for sequence, becomes in ((1, "member"), (2, "reader"), (1024, "out")):
        statement = {"round": "c5" * 32, "subject": "3e" * 32, "sequence": sequence, "becomes": becomes}
        data = bytes.fromhex(statement["round"]) + bytes.fromhex(statement["subject"]) + number(sequence) + text(becomes)
        vectors.append({"statement": statement, "digest": domain_stream("standing/1", data, 32).hex()})
    return vectors


# --- verdicts.json: manifests that ask for verdicts, and the payloads that judges sign -----------------------------------

def cbor(value):
    """Maps in their own order, text, byte strings, booleans and integers from 0, in the shortest form."""
    def head(kind, count):
        for width, extra in ((0, None), (1, 24), (2, 25), (4, 26), (8, 27)):
            if count < (24 if width == 0 else 1 << 8 * width):
                return bytes([kind << 5 | (count if width == 0 else extra)]) + (count.to_bytes(width, "big") if width else b"")
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, dict):
        return head(5, len(value)) + b"".join(cbor(key) + cbor(item) for key, item in value.items())
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    return head(3, len(value.encode())) + value.encode() if isinstance(value, str) else head(0, value)


def verdict_vectors():
    keys = [f"{byte:02x}" * 32 for byte in (0x9a, 0x03, 0x51)]
    shape = {"rank": 2, "alpha": 4, "seed": "05" * 32, "modules": [{"name": "h.0.q", "inputs": 3, "outputs": 4}]}
    rounds = []
    for approvals, more in ((0, {}), (2, {}), (1, {"founders": {"keys": keys[:1], "threshold": 1}, "readers": {"listed": keys[1:2]}})):
        manifest = {"version": 1, "name": "vectors", "base": {"name": "tiny", "digest": "11" * 32}, "kind": {"lora": shape},
                    "rule": "mean", "weight": {"examples": {"cap": 1000}}, "member_max": 4, "roster": {"members": keys},
                    **more, "verdicts": {"approvals": approvals}}
        rounds.append({"manifest": manifest, "id": identity(manifest)})
    records = []
    for sequence, approves, losses, examples in (
            (1, True, {"base_micronats": 3000000, "merged_micronats": 2500000, "with_micronats": 23}, 24),
            (255, True, {"base_micronats": 0, "with_micronats": 65536}, 1 << 32),
            (1024, False, {"base_micronats": (1 << 64) - 1, "merged_micronats": 255}, 1)):
        verdict = {"round": "c5" * 32, "member": "3e" * 32, "subject": "4f" * 32, "announcement": "a0" * 32,
                   "sequence": sequence, "approves": approves, "losses": losses, "examples": examples}
        raw = {key: bytes.fromhex(value) if isinstance(value, str) else value for key, value in verdict.items()}
        payload = cbor({"verdict": raw})
        named = domain_stream("record/1", number(len(payload)) + payload, 32).hex()
        records.append({"record": {"verdict": verdict}, "payload": payload.hex(), "id": named})
    return {"rounds": rounds, "records": records}


# --- links.json: bech32m as in BIP 350, with ":" for its separator ------------------------------------------------------

ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def remainder(values):
    sum_ = 1
    for value in values:
        top = sum_ >> 25
        sum_ = (sum_ & 0x1FFFFFF) << 5 ^ value
        for i, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            sum_ ^= term if top >> i & 1 else 0
    return sum_


def expanded(prefix):
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def link(identity):
    number = int.from_bytes(identity, "big") << 4
    digits = [number >> 5 * (51 - i) & 31 for i in range(52)]
    check = remainder(expanded("mingle") + digits + [0] * 6) ^ 0x2BC830A3
    return "mingle:" + "".join(ALPHABET[d] for d in digits + [check >> 5 * (5 - i) & 31 for i in range(6)])


def link_vectors():
    for valid in ("a1lqfn3a", "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx", "?1v759aa"):  # from BIP 350
        prefix, data = valid.rsplit("1", 1)
        assert remainder(expanded(prefix) + [ALPHABET.index(c) for c in data]) == 0x2BC830A3
    return [{"round": identity.hex(), "link": link(identity)}
            for identity in (bytes(32), bytes([255] * 32), bytes(range(32)), bytes(range(251, 219, -1)))]


for name, vectors in (("number.json", number_vectors()), ("merge.json", merge_vectors()), ("rounds.json", round_vectors()),
                      ("rules.json", rule_vectors()),
                      ("standings.json", standing_vectors()), ("verdicts.json", verdict_vectors()), ("links.json", link_vectors())):
    (HERE / name).write_text(json.dumps(vectors, separators=(",", ":")).replace("},{", "},\n{") + "\n")
