"""What is held against the data before every training run: that what is trained is exactly what is sampled."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example, message_weights, split_reasoning, texts_of
from tinkertools.chat.preview import plain
from tinkertools.chat.rendering import RenderedData, Renderer, conversation_name
from tinkertools.errors import DataError

# Conversations that are looked at, spread over the data.
_SAMPLE = 16


def check(
    renderer: Renderer, conversations: Sequence[Conversation], data: RenderedData, vocabulary: int | None,
    name: Callable[[int], str] = conversation_name,
) -> int:  # fmt: skip
    """Check a sample of the rendered data, and return how many conversations that was.

    Args:
        renderer: rendered the data, and writes the prompts that will be sampled from.
        conversations: what was rendered.
        data: their examples, before any was cut to length.
        vocabulary: how many tokens the model has, where that is known.
        name: what a conversation is called, by its number from 0.

    Raises:
        DataError: a check failed; the message shows the example.
    """
    for number, example in enumerate(data.examples):
        if vocabulary is not None and int(example.tokens.max(initial=0)) >= vocabulary:
            raise DataError(
                f"{name(int(data.origins[number]))} has token {int(example.tokens.max())}, but the model "
                f"knows only {vocabulary:,} tokens: {renderer.name} is not for this model",
                hint="name the model's own renderer (--renderer), or use its own tokenizer files",
            )
    step = max(1, len(conversations) // _SAMPLE)
    sample = range(0, len(conversations), step)[:_SAMPLE]
    for number in sample:
        first, after = np.searchsorted(data.origins, [number, number + 1]).tolist()
        problem, shown_example = _problem(renderer, conversations[number], data.examples[first:after])
        if problem:
            shown = f"\n{plain(renderer, shown_example)}" if shown_example is not None else ""
            raise DataError(
                f"the self-check failed on {name(number)}: {problem}{shown}",
                hint="take another renderer (--renderer), or mend the model's chat template",
            )
    return len(sample)


def _problem(
    renderer: Renderer, conversation: Conversation, examples: Sequence[Example]
) -> tuple[str | None, Example | None]:
    """What is wrong with a conversation's examples, and the one to show."""
    for example in examples:
        if len(example.tokens) > 1 and example.tokens[0] == example.tokens[1] == renderer.bos_token:
            return "it begins with two beginning-of-sequence tokens", example
    messages = conversation["messages"]
    weights = message_weights(messages, renderer.train_on_what)
    trained = [i for i, weight in enumerate(weights) if weight]
    if renderer.train_on_what == "ALL_TOKENS" or any(messages[i]["role"] != "assistant" for i in trained):
        return None, None  # there, not only answers are trained
    expected = 0
    for i in trained:
        prompt = renderer.generation_prompt({**conversation, "messages": messages[:i]}).tokens
        size = len(prompt)
        fitting = [
            e for e in examples if len(e.tokens) > size and e.weights[size] and np.array_equal(e.tokens[:size], prompt)
        ]
        if not fitting:
            return (
                f"the tokens before the answer in messages[{i}] are not the prompt that it would be sampled with",
                examples[0] if examples else None,
            )
        example = fitting[0]
        ends = np.flatnonzero(np.isin(example.tokens[size:], renderer.stop_tokens))
        if not len(ends) or not example.weights[size : size + ends[0] + 1].all():
            return f"the answer in messages[{i}] is not trained up to its end-of-turn token", example
        answer = renderer.text(example.tokens[size : size + ends[0] + 1].tolist())
        texts = [split_reasoning({**messages[i], "content": text})[1] for text in texts_of(messages[i])]
        if any(_normal(text) not in _normal(answer) for text in texts):
            return f"the trained tokens of messages[{i}] do not give back its text, but {answer!r}", example
        expected += int(ends[0]) + 1
    found = sum(int(np.count_nonzero(example.weights)) for example in examples)
    if found != expected:
        return f"{found} tokens are trained, but the answers have {expected}", examples[0]
    return None, None


def _normal(text: str) -> str:
    """A text in the form that all tokenizers leave as it is: some compose characters, some join spaces."""
    return "".join(unicodedata.normalize("NFKC", text).split())
