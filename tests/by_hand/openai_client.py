"""Shows that the official OpenAI client works unchanged against `mingle serve`: models, completions, chats, streams, errors, and
eight threads at once.

Run by hand in an environment with `openai`:

    mingle serve --base testnet/base
    python tests/by_hand/openai_client.py [--url http://127.0.0.1:8080/v1]

Or, while adapters arrive at a peer that serves (`mingle-testnet --serve`), for so many seconds: no request may fail, and whatever
two answers made by one merge (their fingerprint says which) must be the same, whole or streamed.

    python tests/by_hand/openai_client.py --seconds 40 --ask "How many spoons is that?"

Last run with openai 3.57.0.
"""

import argparse
import collections
import concurrent.futures
import time

import openai

arguments = argparse.ArgumentParser()
arguments.add_argument("--url", default="http://127.0.0.1:8080/v1")
arguments.add_argument("--key", default="none")
arguments.add_argument("--seconds", type=float, help="eight threads ask for so long, while adapters arrive")
arguments.add_argument("--ask", default="Where is the ship?", help="what they ask: best something that the adapters answer otherwise")
arguments = arguments.parse_args()
client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0)



def ask_on(number):
    """One thread's questions: the fingerprint and the text of each answer."""
    found, asked = [], dict(messages=[{"role": "user", "content": arguments.ask}], max_completion_tokens=24, temperature=0)
    while time.monotonic() < until:
        # The best that there is: the merge, once there is one.
        asked["model"] = next(iter(client.models.list())).id
        if len(found) % 2:
            whole = client.chat.completions.create(**asked)
            found.append((whole.system_fingerprint, whole.choices[0].message.content))
        else:
            chunks = list(client.chat.completions.create(**asked, stream=True))
            assert len({chunk.system_fingerprint for chunk in chunks}) == 1, chunks
            found.append((chunks[0].system_fingerprint, "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)))
    return found


if arguments.seconds:
    until, texts = time.monotonic() + arguments.seconds, collections.defaultdict(collections.Counter)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for fingerprint, text in (answer for answers in threads.map(ask_on, range(8)) for answer in answers):
            texts[fingerprint][text] += 1
    for fingerprint, found in texts.items():
        print(f"{sum(found.values()):6} answers of {fingerprint[:16]:16}  {next(iter(found))!r}")
    assert all(len(found) == 1 for found in texts.values()), texts
    print(f"openai {openai.__version__}: no request failed, and each merge gave one answer")
    raise SystemExit

models = [model.id for model in client.models.list()]
assert "base" in models, models
model = models[0]
assert client.models.retrieve(model).id == model

# A completion, whole and streamed: the same text.
asked = dict(model=model, prompt="The harbour", max_tokens=24, temperature=0)
whole = client.completions.create(**asked)
assert whole.usage.prompt_tokens > 0 and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
assert whole.system_fingerprint
streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
assert streamed == whole.choices[0].text, (streamed, whole.choices[0].text)
told = client.completions.create(**asked, logprobs=2).choices[0].logprobs
assert "".join(told.tokens) == whole.choices[0].text and all(logprob <= 0 for logprob in told.token_logprobs)
many = client.completions.create(**{**asked, "prompt": ["One", "Two"], "temperature": 1.0}, n=2, seed=5)
assert [choice.index for choice in many.choices] == [0, 1, 2, 3]

# A chat, whole and streamed, with probabilities, a stop and usage.
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the ship?"}]
asked = dict(model=model, messages=messages, max_completion_tokens=24, temperature=0)
whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
text = whole.choices[0].message.content
assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason in ("stop", "length")
assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)
pieces, usage = [], None
for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    pieces += [choice.delta.content or "" for choice in chunk.choices]
    usage = chunk.usage or usage
assert "".join(pieces) == text, (pieces, text)
assert usage.completion_tokens == whole.usage.completion_tokens
stop = text[len(text) // 2 :][:2]
if stop:
    stopped = client.chat.completions.create(**asked, stop=[stop])
    assert stopped.choices[0].message.content == text.split(stop)[0] and stopped.choices[0].finish_reason == "stop"
with client.chat.completions.with_streaming_response.create(**asked) as response:
    assert response.headers["x-mingle-fingerprint"] == whole.system_fingerprint

# Errors are the client's own exceptions.
for wrong, error in [
    (dict(model="gpt-4o"), openai.NotFoundError),
    (dict(temperature=9), openai.BadRequestError),
    (dict(tools=[{"type": "function", "function": {"name": "f"}}]), openai.BadRequestError),
    (dict(max_completion_tokens=10**6), openai.BadRequestError),
]:
    try:
        client.chat.completions.create(**{**asked, **wrong})
        raise SystemExit(f"{wrong} was answered")
    except error as refused:
        assert refused.body["message"], refused


def talk(number):
    """One thread's talk: every answer, streamed or not, is the one that its seed gives."""
    asked = dict(model=model, messages=messages, max_completion_tokens=16 + number, seed=number)
    first = client.chat.completions.create(**asked).choices[0].message.content
    for turn in range(6):
        if turn % 2:
            again = client.chat.completions.create(**asked).choices[0].message.content
        else:
            chunks = client.chat.completions.create(**asked, stream=True)
            again = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert again == first, (again, first)
    return 7


with concurrent.futures.ThreadPoolExecutor(8) as threads:
    answered = sum(threads.map(talk, range(8)))
print(f"openai {openai.__version__}: all as it should be, {answered} answers to eight threads, models {models}")
