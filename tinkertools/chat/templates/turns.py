"""The assistant turns of a conversation as they are sampled, found by comparing what the template writes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinkertools.chat.conversations import Message
from tinkertools.chat.examples import split_reasoning, texts_of
from tinkertools.chat.templates.program import ChatTemplate


@dataclass(frozen=True)
class Turn:
    """An assistant turn as it is sampled: `text` ends with it, and `text[start:]` is what the model must emit.

    `problem` says why it cannot be trained, where that is so.
    """

    message: int
    text: str = ""
    start: int = 0
    problem: str | None = None

    def stands_in(self, text: str) -> bool:
        """Whether `text`, a later state of the conversation, holds this turn and all before it as they were."""
        return self.problem is None and text.startswith(self.text)


def sampled_turns(
    template: ChatTemplate, messages: list[Message], tools: list[Any] | None, stop_texts: Sequence[str]
) -> list[Turn]:
    """Each assistant turn as it is sampled; `stop_texts` are the texts of the tokens that end one.

    Raises:
        RenderError: the template refuses the conversation before a turn, or up to its end.
        ContentMatters: the template looks at what a stand-in says.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        return []
    prompts = template.write([messages[:i] for i in answers], tools, generation=True)
    texts, blocks = template.write_with_blocks([messages[: i + 1] for i in answers], tools)
    turns = []
    for i, prompt, text, marked in zip(answers, prompts, texts, blocks, strict=True):
        lost = _lost_of_tools(messages[:i], tools, prompt)
        turns.append(Turn(i, problem=lost) if lost else _turn(i, messages[i], prompt, text, marked, stop_texts))
    return turns


def _turn(
    i: int, message: Message, prompt: str, text: str, blocks: list[tuple[int, int]] | None, stop_texts: Sequence[str]
) -> Turn:
    """The turn that `text` ends with, given the generation prompt before it and the template's own marks."""
    start = len(prompt)
    if not text.startswith(prompt):
        return Turn(
            i, problem=f"messages[{i}]: the chat template writes the conversation before this turn differently "
            "from the prompt it would be sampled with"
        )  # fmt: skip
    stops = [(at, at + len(stop)) for stop in stop_texts if (at := text.find(stop, start)) >= 0]
    if not stops:
        return Turn(
            i, problem=f"messages[{i}]: the chat template ends this turn without an end-of-turn token "
            f"({' or '.join(stop_texts)}), so the model would never learn to stop"
        )  # fmt: skip
    stop, end = min(stops)
    for content in map(str.__str__, texts_of(message)):  # a stand-in may be looked at here
        reasoning, rest = split_reasoning({**message, "content": content})
        if reasoning.strip() not in text[start:stop]:
            return Turn(
                i, problem=f"messages[{i}]: the chat template leaves this turn's reasoning out: remove it, or name "
                "a renderer that writes it with --renderer"
            )  # fmt: skip
        if rest.strip() not in text[start:stop]:
            return Turn(i, problem=f"messages[{i}]: the chat template does not write this turn's text as it is")
    position = start
    for j, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        position = text.find(function["name"], position, stop) + 1
        if not position or not all(_is_written(key, text[start:stop]) for key in function["arguments"]):
            return Turn(i, problem=f"messages[{i}].tool_calls[{j}]: the chat template does not write this call")
    if blocks is not None and not _covered(blocks, start, stop):
        return Turn(
            i, problem=f"messages[{i}]: the template's {{% generation %}} leaves out a part of what the model "
            "must emit after its own generation prompt"
        )  # fmt: skip
    return Turn(i, text[:end], start)


def _lost_of_tools(messages: list[Message], tools: list[Any] | None, prompt: str) -> str | None:
    """What a template without tools leaves out: the tools themselves, or what one of them returned."""
    if tools and not all(_is_written(tool["function"]["name"], prompt) for tool in tools):
        return "tools: the chat template does not write them"
    for i, message in enumerate(messages):
        if message["role"] == "tool" and not all(_is_written(text, prompt) for text in texts_of(message)):
            return f"messages[{i}]: the chat template does not write what the tool returned"
    return None


def _is_written(text: str, written: str) -> bool:
    """Whether a text stands in another, as it is or as it stands in JSON."""
    return text.strip() in written or json.dumps(text.strip(), ensure_ascii=False)[1:-1] in written


def _covered(blocks: list[tuple[int, int]], start: int, end: int) -> bool:
    """Whether the blocks leave no character of a span out."""
    for begin, stop in sorted(blocks):
        if begin > start:
            break
        start = max(start, stop)
    return start >= end
