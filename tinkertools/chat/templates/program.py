"""A model's chat template as what it is: a program of the model's author that writes conversations as text."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tinkertools.chat.conversations import Message
from tinkertools.chat.examples import RenderError
from tinkertools.chat.templates.shapes import ContentMatters, StandIn, copies_blindly
from tinkertools.config import TEMPLATE_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = "probe"


def with_fixed_date(chat_template: str) -> tuple[str, int]:
    """A chat template with `TEMPLATE_DATE` where it asks for today's date, and how often it does."""
    return _TODAY.subn(lambda found: repr(TEMPLATE_DATE.strftime(found[2])), chat_template)


class ChatTemplate:
    """Writes conversations with a model's own chat template; `source` is what it is run as."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self.source, _ = with_fixed_date(str(tokenizer.chat_template))
        self._marks_generation = _GENERATION.search(self.source) is not None
        code = _COMMENT.sub("", self.source)
        self._takes_reasoning = re.search(r"reasoning|\bthinking\b", code) is not None
        self._knows_developer = "developer" in code
        self._content_as_parts = False
        self._content_as_parts = self._wants_parts()

    def as_read(self, message: Message) -> Message:
        """A message as chat templates read it: arguments of tools as objects, reasoning where they look for it."""
        if message["role"] == "developer" and not self._knows_developer:
            message = {**message, "role": "system"}
        if "tool_calls" in message:
            calls = [
                {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
            message = {**message, "tool_calls": calls}
        if "reasoning_content" in message and not self._takes_reasoning:
            content = f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"
            message = {key: value for key, value in message.items() if key != "reasoning_content"}
            message["content"] = content
        return message

    def write(
        self, conversations: list[list[Message]], tools: list[Any] | None, *, generation: bool = False
    ) -> list[str]:
        """Each conversation as the template writes it, with or without the beginning of an answer.

        Messages are as `as_read` returns them; their texts may be stand-ins, if the template is `traceable`.

        Raises:
            RenderError: the template refuses a conversation, or a text holds half of a surrogate pair.
            ContentMatters: the template looks at what a stand-in says.
        """
        stand_ins = any(isinstance(message["content"], StandIn) for messages in conversations for message in messages)
        if self._content_as_parts:
            conversations = [_as_parts(messages) for messages in conversations]
        try:
            if stand_ins:
                return [self._trace(messages, generation=generation) for messages in conversations]
            written: Any = self._tokenizer.apply_chat_template(
                conversations,
                tools=tools,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except ContentMatters:
            raise
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise RenderError(f"the chat template refuses the conversation: {error}") from error
        refuse_surrogates(written)
        return list(written)

    def write_with_blocks(
        self, conversations: list[list[Message]], tools: list[Any] | None
    ) -> tuple[list[str], Sequence[list[tuple[int, int]] | None]]:
        """As `write` without an answer's beginning, with the spans that the template marks as generated.

        Raises:
            RenderError: the template refuses a conversation, or a text holds half of a surrogate pair.
            ContentMatters: the template looks at what a stand-in says.
        """
        if not self._marks_generation:
            return self.write(conversations, tools), [None] * len(conversations)
        from transformers.utils.chat_template_utils import render_jinja_template

        if self._content_as_parts:
            conversations = [_as_parts(messages) for messages in conversations]
        special: Any = self._tokenizer.special_tokens_map
        try:
            written: Any = render_jinja_template(
                conversations,
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                add_generation_prompt=False,
                **special,
            )
        except Exception as error:
            raise RenderError(f"the chat template refuses the conversation: {error}") from error
        texts, blocks = written
        refuse_surrogates(texts)
        return texts, blocks

    @cached_property
    def traceable(self) -> bool:
        """Whether stand-ins take note of all that this template does."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        compiled = _compile_jinja_template(self.source)
        return not self._marks_generation and not copies_blindly(compiled.environment.parse(self.source))

    def after_an_answer(self) -> str:
        """What the template writes after an answer, less space at its end; nothing if it refuses a short talk."""
        messages = [self.as_read({"role": role, "content": _PROBE}) for role in ("user", "assistant")]
        try:
            text = self.write([messages], None)[0].rstrip()
        except RenderError:
            return ""
        return text[text.rfind(_PROBE) + len(_PROBE) :]

    def _trace(self, messages: list[Message], *, generation: bool) -> str:
        """As `apply_chat_template`, which would make plain texts of stand-ins."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        text = _compile_jinja_template(self.source).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=generation,
            **self._tokenizer.special_tokens_map,
        )
        return str(text)

    def _wants_parts(self) -> bool:
        """Whether the template writes a message's text only where it is a list of parts, as vision models' do."""

        def writes(content: Any) -> bool:
            try:
                return _PROBE in self.write([[{"role": "user", "content": content}]], None)[0]
            except RenderError:
                return False

        return not writes(_PROBE) and writes([{"type": "text", "text": _PROBE}])


def refuse_surrogates(texts: Iterable[str]) -> None:
    """Nothing, where all texts can be encoded.

    Raises:
        RenderError: one holds half of a surrogate pair.
    """
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise RenderError("a message holds half of a surrogate pair, which is no text") from error


def _as_parts(messages: list[Message]) -> list[Message]:
    """The messages with their texts in lists of parts."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
