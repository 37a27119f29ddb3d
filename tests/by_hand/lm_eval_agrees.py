"""Shows that `mingle eval` gives what lm-evaluation-harness gives: log-likelihoods of every choice, acc and acc_norm of
MMLU and ARC, greedy answers and both exact matches of GSM8K.

Run by hand in an environment with torch, transformers and lm-eval (and peft, for --adapter):

    python tests/by_hand/lm_eval_agrees.py BASE GSM8K.jsonl [--adapter DIR] [--mingle target/release/mingle] [--limit 40]

The harness's own task files are used; only where they find their data is changed. MMLU and ARC questions are made from
those of GSM8K.jsonl (`question`, `answer`), in all the forms that mingle reads: a small model's numbers differ from each
other no less on made questions.

Last run with lm-eval 0.4.13, torch 2.15.0 and transformers 5.23.0.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import lm_eval
import lm_eval.tasks
import yaml

arguments = argparse.ArgumentParser()
arguments.add_argument("base")
arguments.add_argument("gsm8k")
arguments.add_argument("--adapter")
arguments.add_argument("--mingle", default="target/release/mingle")
arguments.add_argument("--limit", type=int, default=40)
arguments = arguments.parse_args()

SHOTS = 2
work = pathlib.Path(tempfile.mkdtemp())
records = [json.loads(line) for line in open(arguments.gsm8k)][: arguments.limit + SHOTS]
shown, asked = records[:SHOTS], records[SHOTS:]
draw = random.Random(1)


def task_file(path):
    """A task of the harness, with the tag that pulls in its base file resolved."""
    path = pathlib.Path(lm_eval.tasks.__file__).parent / path
    text = yaml.safe_load(path.read_text())
    return {**task_file(path.parent / text.pop("include")), **text} if "include" in text else text


def choices_of(record):
    """The first sentences of the solution against those of others: texts of different lengths, one with accents."""
    others = [draw.choice(records)["answer"].split("\n")[0] for _ in range(3)]
    choices = [record["answer"].split("\n")[0], *others[:2], "naïve – " + others[2]]
    order = draw.sample(range(4), 4)
    return [choices[i] for i in order], order.index(0)


def write_jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_files():
    mmlu, arc = {}, {}
    for name, part in (("dev", shown), ("test", asked)):
        made = [(record["question"], *choices_of(record)) for record in part]
        hub = [dict(question=q, subject="grade_school_mathematics", choices=c, answer=a) for q, c, a in made]
        mmlu[name] = write_jsonl(work / f"mmlu_{name}.jsonl", hub)
        with open(work / f"grade_school_mathematics_{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([q, *c, "ABCD"[a]] for q, c, a in made)
        # Numbers for every other question, as in ARC; the harness looks up the answer among them.
        labels = lambda i: list("1234" if i % 2 else "ABCD")
        hub = [dict(question=q, choices=dict(text=c, label=labels(i)), answerKey=labels(i)[a]) for i, (q, c, a) in enumerate(made)]
        arc[name] = write_jsonl(work / f"arc_{name}.jsonl", hub)
        released = [dict(question=dict(stem=q, choices=[dict(text=t, label=l) for t, l in zip(c, labels(i))]), answerKey=labels(i)[a])
                    for i, (q, c, a) in enumerate(made)]
        write_jsonl(work / f"arc_released_{name}.jsonl", released)
    return mmlu, arc


def harness(task, files, shots):
    splits = dict(training_split=None, validation_split=None, fewshot_split="dev", test_split="test")
    data = dict(dataset_path="json", dataset_name=None, dataset_kwargs=dict(data_files={k: str(v) for k, v in files.items()}))
    config = {**task, **data, **splits, "fewshot_config": {"sampler": "first_n"}, "num_fewshot": shots}
    config.pop("tag", None)
    model = f"pretrained={arguments.base},dtype=float32" + (f",peft={arguments.adapter}" if arguments.adapter else "")
    found = lm_eval.simple_evaluate(model="hf", model_args=model, tasks=[config], device="cpu", batch_size=8, bootstrap_iters=0)
    name = config["task"]
    return found["results"][name], sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


def mingle(task, data, dev, shots):
    command = [arguments.mingle, "eval", "--base", arguments.base, "--task", task, "--data", data, "--json", "--samples", work / "samples"]
    command += ["--adapter", arguments.adapter] if arguments.adapter else []
    command += ["--dev", dev, "--shots", str(shots)] if shots else []
    results = json.loads(subprocess.check_output(command))
    return results, [json.loads(line) for line in open(work / "samples")]


def same(what, ours, theirs, tolerance=1e-9):
    if abs(ours - theirs) > tolerance:
        sys.exit(f"{what}: mingle says {ours}, the harness {theirs}")


def check_choices(name, task, files, forms):
    for shots in (0, SHOTS):
        theirs, their_samples = harness(task, files, shots)
        for data, dev in forms:
            results, samples = mingle(name, data, dev, shots)
            ours, furthest = results["multiple_choice"]["total"], 0
            assert len(samples) == len(their_samples) == len(asked)
            for sample, their in zip(samples, their_samples):
                sums = [float(response[0][0]) for response in their["resps"]]
                furthest = max([furthest, *(abs(a - b) for a, b in zip(sample["log_likelihoods"], sums, strict=True))])
            same(f"{data} log-likelihoods", furthest, 0, 1e-3)
            for metric in ("acc", "acc_norm"):
                if f"{metric},none" in theirs:
                    same(f"{data} {metric}", ours[metric], theirs[f"{metric},none"])
            print(f"{name} {data.name}, {shots} shots: {len(samples)} questions, acc {ours['acc']:.4f}, acc_norm "
                  f"{ours['acc_norm']:.4f}, log-likelihoods within {furthest:.1e}", flush=True)


def check_gsm8k():
    files = dict(dev=write_jsonl(work / "gsm8k_dev.jsonl", shown), test=write_jsonl(work / "gsm8k_test.jsonl", asked))
    for shots in (0, SHOTS):
        theirs, their_samples = harness(task_file("gsm8k/gsm8k.yaml"), files, shots)
        results, samples = mingle("gsm8k", files["test"], files["dev"], shots)
        ours = results["exact_match"]
        # Every question is listed once a filter.
        answers = {sample["doc_id"]: sample["resps"][0][0] for sample in their_samples}
        differ = sum(sample["answer"] != answers[index] for index, sample in enumerate(samples))
        same("gsm8k strict-match", ours["strict_match"], theirs["exact_match,strict-match"])
        same("gsm8k flexible-extract", ours["flexible_extract"], theirs["exact_match,flexible-extract"])
        print(f"gsm8k, {shots} shots: {len(samples)} questions, strict {ours['strict_match']:.4f}, flexible "
              f"{ours['flexible_extract']:.4f}, {differ} answers differ", flush=True)
        if differ:
            sys.exit("the generated answers differ")


print("lm-eval", lm_eval.__version__)
mmlu, arc = make_files()
description = dict(description="The following are multiple choice questions (with answers) about grade school mathematics.\n\n")
forms = [(mmlu["test"], mmlu["dev"]), tuple(work / f"grade_school_mathematics_{name}.csv" for name in ("test", "dev"))]
check_choices("mmlu", {**task_file("mmlu/default/_default_template_yaml"), **description, "task": "made_mmlu"}, mmlu, forms)
forms = [(arc["test"], arc["dev"]), tuple(work / f"arc_released_{name}.jsonl" for name in ("test", "dev"))]
check_choices("arc", task_file("arc/arc_easy.yaml"), arc, forms)
check_gsm8k()
print("the same")
