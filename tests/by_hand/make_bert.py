"""Writes a small BERT to be trained on SST-2: a WordPiece tokenizer trained on the texts, and an encoder pre-trained a little
on them with masked words, as transformers saves both. It stands in for a published BERT where none can be fetched.

Run by hand in an environment with torch, transformers and tokenizers:

    python tests/by_hand/make_bert.py SST2_train.tsv OUT [--steps 1500]

OUT is a Hugging Face directory: config.json with the classes negative and positive, model.safetensors without a
classification head (as published encoders come: a training draws the head), tokenizer.json. With one seed it is the same on
one machine. Then, for example:

    mingle train --base OUT --data SST2_train.tsv --targets all-linear --save-modules classifier --out ADAPTER
    mingle eval --base OUT --adapter ADAPTER --data SST2_dev.tsv --task classes
    mingle train --base OUT --data SST2_train.tsv --method full --out MODEL
    mingle eval --base MODEL --data SST2_dev.tsv --task classes

Last run with torch 2.15.0, transformers 5.23.0 and tokenizers 0.23.3.
"""

import argparse
import random
import time

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

arguments = argparse.ArgumentParser()
arguments.add_argument("texts")
arguments.add_argument("out")
arguments.add_argument("--steps", type=int, default=1500)
arguments.add_argument("--batch", type=int, default=48)
arguments.add_argument("--hidden", type=int, default=128)
arguments.add_argument("--layers", type=int, default=3)
arguments.add_argument("--vocabulary", type=int, default=4000)
arguments = arguments.parse_args()
torch.manual_seed(1)
draw = random.Random(1)

texts = [line.split("\t")[0] for line in open(arguments.texts) if line.strip() and not line.startswith("sentence\t")]
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.decoder = decoders.WordPiece()
tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=arguments.vocabulary, special_tokens=special))
ids = {name: tokenizer.token_to_id(name) for name in special}
tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{name.strip('[]').lower()}_token": name for name in special})
fast.save_pretrained(arguments.out)

config = transformers.BertConfig(
    vocab_size=tokenizer.get_vocab_size(), hidden_size=arguments.hidden, num_hidden_layers=arguments.layers,
    num_attention_heads=arguments.hidden // 32, intermediate_size=4 * arguments.hidden, max_position_embeddings=128,
    pad_token_id=ids["[PAD]"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1})
model = transformers.BertForMaskedLM(config)
optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
rate = lambda step: min(1, (step + 1) / 100) * max(0.02, 1 - step / arguments.steps)
schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
encoded = sorted((tokenizer.encode(text).ids[:64] for text in texts), key=len)
began, mean = time.time(), None
for step in range(arguments.steps):
    at = draw.randrange(max(1, len(encoded) - arguments.batch))
    rows = encoded[at : at + arguments.batch]
    length = max(map(len, rows))
    inputs = torch.tensor([row + [ids["[PAD]"]] * (length - len(row)) for row in rows])
    mask = inputs != ids["[PAD]"]
    # BERT's rule: of 15 % of the words, 80 % are hidden, 10 % exchanged, 10 % left.
    chosen = (torch.rand(inputs.shape) < 0.15) & (inputs >= len(special))
    labels = torch.where(chosen, inputs, -100)
    kind = torch.rand(inputs.shape)
    inputs = torch.where(chosen & (kind < 0.8), ids["[MASK]"], inputs)
    inputs = torch.where(chosen & (kind > 0.9), torch.randint(len(special), config.vocab_size, inputs.shape), inputs)
    loss = model(input_ids=inputs, attention_mask=mask.long(), labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    schedule.step()
    mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
    if step % 100 == 99:
        print(f"step {step + 1} of {arguments.steps}: masked loss {mean:.3f}, {time.time() - began:.0f} s", flush=True)

# As a published encoder: the body alone, with a pooler, under the name `bert.`.
encoder = transformers.BertForSequenceClassification(config)
encoder.bert.load_state_dict(model.bert.state_dict(), strict=False)
state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("classifier")}
encoder.save_pretrained(arguments.out, state_dict=state)
print("written", arguments.out)
