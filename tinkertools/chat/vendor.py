"""Rendering with `tml-renderers`, the vendor's own renderers and tokenizers: the truth for the models they cover."""

import base64
import binascii
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import orjson

from tinkertools.chat.conversations import Conversation, Message
from tinkertools.chat.examples import (
    IMAGE_TOKEN,
    Example,
    Image,
    Prompt,
    RenderError,
    Tokens,
    changed_span,
    image_parts,
    message_weights,
    split_reasoning,
    texts_of,
    trimmed,
    unite,
    with_stand_in,
)
from tinkertools.config import TEMPLATE_DATE, TrainOnWhat

if TYPE_CHECKING:
    from tml_renderers import chat


def _makers() -> dict[str, Callable[[], Any]]:
    """Every renderer by name. Where the Tinker cookbook has the same one, the name is the cookbook's."""
    from tml_renderers import renderers as r
    from tml_renderers import tokenizers, v0

    date = TEMPLATE_DATE.isoformat()
    return {
        "qwen3": r.Qwen3,
        "qwen3_disable_thinking": r.Qwen3.disable_thinking,
        "qwen3_instruct": r.Qwen3.instruct,
        "qwen3_vl": r.Qwen3.vision,
        "qwen3_vl_instruct": r.Qwen3.vision_instruct,
        "qwen3_5": r.Qwen35,
        "qwen3_5_disable_thinking": r.Qwen35.disable_thinking,
        "qwen3_8_xhigh_reasoning": r.Qwen38.xhigh,
        "qwen3_8_medium_reasoning": r.Qwen38.medium,
        "qwen3_8_low_reasoning": r.Qwen38.low,
        "qwen3_8_disable_thinking": r.Qwen38.disable_thinking,
        "deepseek_v3": r.DeepSeekV3,
        "deepseek_r1": r.DeepSeekR1,
        "deepseekv3": r.DeepSeekV31,
        "deepseekv3_disable_thinking": r.DeepSeekV31,
        "deepseekv3_thinking": r.DeepSeekV31.thinking,
        "deepseek_v4": r.DeepSeekV4,
        "deepseek_v4_chat": r.DeepSeekV4.chat,
        "deepseek_v41": r.DeepSeekV41,
        "deepseek_v41_chat": r.DeepSeekV41.chat,
        "kimi_k2": r.KimiK2,
        "kimi_k25": r.KimiK25,
        "kimi_k25_disable_thinking": r.KimiK25.disable_thinking,
        "kimi_k26": r.KimiK25,
        "kimi_k26_disable_thinking": r.KimiK25.disable_thinking,
        "kimi_k26_preserve_thinking": r.KimiK25.preserve_thinking_history,
        "glm_52": r.Glm52,
        "glm_53": r.Glm53,
        "glm_53_flash": r.Glm53Flash,
        "gpt_oss_low_reasoning": lambda: r.GptOss.low(current_date=date),
        "gpt_oss_medium_reasoning": lambda: r.GptOss.medium(current_date=date),
        "gpt_oss_high_reasoning": lambda: r.GptOss.high(current_date=date),
        "nemotron3": r.Nemotron3,
        "nemotron3_low_thinking": r.Nemotron3.low,
        "nemotron3_disable_thinking": r.Nemotron3.disable_thinking,
        "nemotron3_preserve_thinking": r.Nemotron3.preserve_thinking_history,
        "nemotron3_ultra": r.Nemotron3.ultra,
        "nemotron3_ultra_disable_thinking": r.Nemotron3.ultra_disable_thinking,
        "nemotron3_ultra_medium_thinking": r.Nemotron3.ultra_medium,
        "nemotron3_ultra_preserve_thinking": r.Nemotron3.ultra_preserve_thinking_history,
        "tml_v0": lambda: v0.Renderer(tokenizers.O200kBaseChatTokenizer()),
    }


# Which renderer a model on the Hub is written for, by its name in lower case. Models of the same makers that no pattern
# names (Qwen3-Coder, the R1 distillations, Kimi-K2-Instruct …) have another format: their chat template is used.
_MODELS = [
    (re.compile(pattern), renderer)
    for pattern, renderer in (
        (r"qwen/qwen3-vl-.*instruct.*", "qwen3_vl_instruct"),
        (r"qwen/qwen3-.*instruct-2507.*", "qwen3_instruct"),
        (r"qwen/qwen3-[\d.]+b(-a[\d.]+b)?(-base)?(-fp8|-awq|-gptq.*|-bf16)?", "qwen3"),
        (r"qwen/qwen3\.5-(0\.8|2)b(-.*)?", "qwen3_5_disable_thinking"),
        (r"qwen/qwen3\.[56]-.*", "qwen3_5"),
        (r"qwen/qwen3\.8-.*", "qwen3_8_xhigh_reasoning"),
        (r"deepseek-ai/deepseek-v3(-base|-0324)?", "deepseek_v3"),
        (r"deepseek-ai/deepseek-r1(-zero|-0528)?", "deepseek_r1"),
        (r"deepseek-ai/deepseek-v3\.1(-base)?", "deepseekv3"),
        (r"deepseek-ai/deepseek-v4(-(?!\d).*)?", "deepseek_v4"),
        (r"deepseek-ai/deepseek-v4\.1(-.*)?", "deepseek_v41"),
        (r"moonshotai/kimi-k2-thinking", "kimi_k2"),
        (r"moonshotai/kimi-k2\.5(-.*)?", "kimi_k25"),
        (r"moonshotai/kimi-k2\.6(-.*)?", "kimi_k26"),
        (r"zai-org/glm-5\.2(-.*)?", "glm_52"),
        (r"zai-org/glm-5\.3-flash(-.*)?", "glm_53_flash"),
        (r"zai-org/glm-5\.3(-(?!flash).*)?", "glm_53"),
        (r"openai/gpt-oss-.*", "gpt_oss_medium_reasoning"),
        (r"nvidia/nvidia-nemotron-3-(nano|super)-.*", "nemotron3"),
        (r"nvidia/nvidia-nemotron-3(-ultra|\.5-lightning)-.*", "nemotron3_ultra"),
        (r"thinkingmachines/inkling.*", "tml_v0"),
    )
]


def renderer_names() -> list[str]:
    """The names of the vendor's renderers."""
    return list(_makers())


def renderer_for(base_model: str) -> str | None:
    """The renderer of a model on the Hub, where the vendor has one. A name may carry a `:checkpoint`."""
    name = base_model.lower().split(":", 1)[0]
    return next((renderer for pattern, renderer in _MODELS if pattern.fullmatch(name)), None)


class VendorRenderer:
    """Renders with one of the vendor's renderers, by its name."""

    def __init__(self, name: str, train_on_what: TrainOnWhat = "ALL_ASSISTANT_MESSAGES") -> None:
        self.name = name
        self.train_on_what = train_on_what
        self._renderer = _makers()[name]()
        self._tokenizer = self._renderer.tokenizer
        stop = self._renderer.stop()
        self.stop_tokens: list[int] = [
            token if isinstance(token, int) else self._tokenizer.encode_special(token)
            for token in (stop if isinstance(stop, list) else [stop])
        ]

        bos = self._tokenizer.bos_token
        self.bos_token: int | None = (
            self._tokenizer.encode_special(bos) if bos in self._tokenizer.special_tokens() else None
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes make their own: the vendor's objects do not travel."""
        return VendorRenderer, (self.name, self.train_on_what)

    @cached_property
    def _header(self) -> Tokens:
        """What every generation prompt ends with, whatever was said."""
        first, second = (self._prompt(self._native([{"role": "user", "content": text}]), None) for text in ("a", "b?"))
        length = min(len(first.tokens), len(second.tokens))
        unequal = np.flatnonzero(first.tokens[-length:] != second.tokens[-length:])
        return first.tokens[-length:][unequal[-1] + 1 :]

    @property
    def identity(self) -> dict[str, str]:
        """What decides, beside the conversation, the tokens and weights."""
        from importlib.metadata import version

        return {
            "renderer": f"{self.name} of tml-renderers {version('tml-renderers')}",
            "train_on_what": self.train_on_what,
            "date": TEMPLATE_DATE.isoformat(),
        }

    def generation_prompt(self, conversation: Conversation) -> Prompt:
        """The tokens after which the model answers the last message.

        Raises:
            RenderError: the renderer refuses the conversation.
        """
        messages, tools = conversation["messages"], conversation.get("tools")
        self._refuse_unseen_images(messages, tools)
        return self._prompt(self._native(messages), tools)

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text, as its parts were understood; as it stands where the model broke the format."""
        from tml_renderers import chat

        ask = chat.Message(content=chat.Text("?"), author=chat.Author(chat.AuthorKind.User))
        _, parser = self._renderer.render_for_completion([ask])
        try:
            messages = parser.parse_tokens(list(tokens))
        except ValueError:
            return self.text([token for token in tokens if token not in self.stop_tokens])
        return "".join(_answer_text(message.content) for message in messages)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, control tokens included."""
        return str(self._tokenizer.decode(list(tokens)))

    def render(self, conversations: Iterable[Conversation]) -> Iterator[list[Example] | RenderError]:
        """Each conversation's examples, in order, or why it has none."""
        for conversation in conversations:
            try:
                yield self.examples(conversation)
            except RenderError as error:
                yield error

    def examples(self, conversation: Conversation) -> list[Example]:
        """One example where the history stays as it was sampled, else one for each turn that no later one begins with.

        Raises:
            RenderError: a trained turn has no right mask, or the renderer refuses the conversation.
        """
        messages, tools = conversation["messages"], conversation.get("tools")
        weights = message_weights(messages, self.train_on_what)
        native = self._native(messages)
        self._refuse_unseen_images(messages, tools)
        if self.train_on_what == "ALL_TOKENS":
            whole = self._whole(native, tools)
            example = Example(whole.tokens, (whole.tokens != IMAGE_TOKEN).astype(np.float32), whole.images)
            if messages[-1]["role"] == "assistant":
                return [example]
            return [example.head(self._other_span(messages, tools, len(messages) - 1, example)[1])]
        last = max((i for i, weight in enumerate(weights) if weight), default=-1)
        answers = [i for i, message in enumerate(messages[: last + 1]) if message["role"] == "assistant"]
        found = None
        if not any(split_reasoning(messages[i])[0] for i in answers):
            found = self._all_turns(native, tools, answers, weights)
        if found is None:
            found = [(i, self._turn(messages, native[: i + 1], tools, weights[i])) for i in answers if weights[i]]
        if any(weight and messages[i]["role"] != "assistant" for i, weight in enumerate(weights)):
            if messages[last]["role"] != "assistant":
                whole = self._whole(native[: last + 1], tools)
                found.append((last, Example(whole.tokens, np.zeros(len(whole.tokens), np.float32), whole.images)))
            found = self._with_others(messages, tools, weights, found)
        return unite([trimmed(example) for _, example in found])

    def _all_turns(
        self, native: list["chat.OpenAIMessage"], tools: list[Any] | None, answers: list[int], weights: list[float]
    ) -> list[tuple[int, Example]] | None:
        """The vendor's own examples of a conversation, each with the last message it trains.

        None where they are not one stretch of trained tokens for each answer, between its generation prompt and its
        end: some renderers train the last turn only, some write two answers in a row without an end between them, some
        begin an earlier answer otherwise than its prompt does. Reasoning, which a history may lack, is not for them.
        """
        if not answers:
            return []
        turns = iter(answers)
        found = []
        for example in self._sft(native[: answers[-1] + 1], tools):
            new = np.zeros(len(example.tokens), np.float32)
            turn = -1
            runs = example.runs
            for start, end in runs:
                turn = next(turns, -1)
                header = example.tokens[max(0, start - len(self._header)) : start]
                right = np.array_equal(header, self._header) and self._ends_once(example.tokens[start:end])
                if turn < 0 or not right:
                    return None
                new[start:end] = weights[turn]
            if len(runs) > 1:
                prompt = self._prompt(native[:turn], tools)
                if not np.array_equal(example.tokens[: runs[-1][0]], prompt.tokens):
                    return None
            found.append((turn, Example(example.tokens, new, example.images)))
        return found if next(turns, None) is None else None

    def _ends_once(self, turn: Tokens) -> bool:
        """Whether the one end-of-turn token of a turn is its last token: what follows one would never be sampled."""
        return np.flatnonzero(np.isin(turn, self.stop_tokens)).tolist() == [len(turn) - 1]

    def _turn(
        self, messages: list[Message], native: list["chat.OpenAIMessage"], tools: list[Any] | None, weight: float
    ) -> Example:
        """The example of the last message alone, held against the prompt that it would be sampled with."""
        place = f"messages[{len(native) - 1}]"
        example = self._sft(native, tools)[-1]
        prompt = self._prompt(native[:-1], tools).tokens
        runs = example.runs
        if not runs or not np.array_equal(example.tokens[: len(prompt)], prompt) or runs[-1][0] > len(prompt):
            raise RenderError(f"{place}: {self.name} writes this turn differently from what it would be sampled as")
        end = runs[-1][1]
        if example.tokens[end - 1] not in self.stop_tokens:
            raise RenderError(
                f"{place}: {self.name} ends this turn without an end-of-turn token, so the model would never learn to "
                "stop"
            )
        if not self._ends_once(example.tokens[len(prompt) : end]):
            raise RenderError(
                f"{place}: {self.name} writes an end-of-turn token within this turn, where sampling would stop: give "
                "its text and each of its tool calls a message of their own"
            )
        reasoning, content = (unicodedata.normalize("NFC", part) for part in split_reasoning(messages[len(native) - 1]))
        text = unicodedata.normalize("NFC", self.text(example.tokens[len(prompt) : end].tolist()))
        if reasoning.strip() not in text:
            raise RenderError(
                f"{place}: {self.name} leaves this turn's reasoning out: take the renderer's thinking variant with "
                "--renderer, or remove the reasoning"
            )
        if content.strip() not in text:
            raise RenderError(f"{place}: {self.name} does not write this turn's text as it is")
        weights = np.zeros(len(example.tokens), np.float32)
        weights[len(prompt) : end] = weight
        return Example(example.tokens, weights, example.images)

    def _with_others(
        self, messages: list[Message], tools: list[Any] | None, weights: list[float], found: list[tuple[int, Example]]
    ) -> list[tuple[int, Example]]:
        """The examples with the messages trained that no model said, each in the first example that holds it."""
        result = []
        covered = -1
        for last, example in found:
            trained = example.weights.copy()
            for i in range(covered + 1, last + 1):
                if weights[i] and messages[i]["role"] != "assistant" and any(map(str.strip, texts_of(messages[i]))):
                    start, end = self._other_span(messages[: last + 1], tools, i, example)
                    trained[start:end] = np.where(example.tokens[start:end] == IMAGE_TOKEN, 0, weights[i])
            result.append((last, Example(example.tokens, trained, example.images)))
            covered = last
        return result

    def _other_span(
        self, messages: list[Message], tools: list[Any] | None, i: int, example: Example
    ) -> tuple[int, int]:
        """The tokens of a message's text, and an end-of-turn token right after it.

        What changes when only the message does is where it stands; looking for its text could find it elsewhere.
        """
        other = self._whole(self._native(with_stand_in(messages, i)), tools)
        pieces, other_pieces = self._bytes(example.tokens), self._bytes(other.tokens)
        start, end = changed_span(b"".join(pieces).decode("latin-1"), b"".join(other_pieces).decode("latin-1"))
        written = b"".join(pieces)[start:end]
        if not all(content.strip().encode() in written for content in texts_of(messages[i])):
            raise RenderError(f"messages[{i}]: {self.name} does not write this message as it is")
        starts = np.cumsum([0, *map(len, pieces)])
        first, after = int(np.searchsorted(starts, start)), int(np.searchsorted(starts, end))
        return first, after + self._ends_itself(messages[: i + 1], tools, example.tokens, after)

    def _ends_itself(self, messages: list[Message], tools: list[Any] | None, tokens: Tokens, after: int) -> bool:
        """Whether the token after a message's text is its own end, and not the header of who speaks next.

        GLM stops at the header of the user, which follows a system message only where a user speaks.
        """
        if after >= len(tokens) or int(tokens[after]) not in self.stop_tokens:
            return False
        alone = self._prompt(self._native(messages), tools).tokens
        if not np.array_equal(alone[:after], tokens[:after]):
            return True  # the history is written otherwise there, which says nothing of this end
        return after < len(alone) and int(alone[after]) == int(tokens[after])

    def _bytes(self, tokens: Tokens) -> list[bytes]:
        """The bytes of each token; an image has none."""
        return [
            b"" if token == IMAGE_TOKEN else bytes(self._tokenizer.decode_bytes([token])) for token in tokens.tolist()
        ]

    def _refuse_unseen_images(self, messages: list[Message], tools: list[Any] | None) -> None:
        """Some renderers write a word in place of an image, which a model that cannot see would be trained on."""
        places = [place for place, _ in image_parts(messages)]
        if not places:
            return
        native = self._native(messages)
        try:
            seen = len(self._prompt(native, tools).images)
        except RenderError:
            seen = 0
        if seen != len(places):
            raise RenderError(f"{places[0]}: is an image, but {self.name} is for a model that takes text only")

    def _native(self, messages: list[Message]) -> list["chat.OpenAIMessage"]:
        """Messages in the form that the vendor reads."""
        from tml_renderers import chat

        try:
            return list(chat.OpenAIMessage.from_oss_messages(_as_read(messages)))
        except (ValueError, TypeError) as error:
            raise RenderError(f"{self.name} refuses the conversation: {error}") from error

    def _with_tools(self, native: list["chat.OpenAIMessage"], tools: list[Any] | None) -> Any:
        from tml_renderers import chat

        if not tools:
            return native
        functions = [tool["function"] for tool in tools]
        specs = [
            chat.ToolSpecJson("function", f["name"], f.get("description") or "", f.get("parameters") or {})
            for f in functions
        ]
        declaration = chat.Message(content=chat.ToolDeclareJson(specs), author=chat.Author(chat.AuthorKind.System))
        return [declaration, *chat.MessageList.from_messages(native).messages]

    def _sft(self, native: list["chat.OpenAIMessage"], tools: list[Any] | None) -> list[Example]:
        try:
            rendered = self._renderer.render_for_sft(self._with_tools(native, tools))
        except ValueError as error:
            raise RenderError(f"{self.name} refuses the conversation: {_first_words(error)}") from error
        examples = []
        for example in rendered:
            prompt = _read_spans(example.input_token_spans)
            weights = np.asarray(example.per_token_loss_weight_unshifted, np.float32)
            examples.append(Example(prompt.tokens, weights, prompt.images))
        return examples

    def _prompt(self, native: list["chat.OpenAIMessage"], tools: list[Any] | None) -> Prompt:
        try:
            spans, _ = self._renderer.render_for_completion(self._with_tools(native, tools))
        except ValueError as error:
            raise RenderError(f"{self.name} refuses the conversation: {_first_words(error)}") from error
        return _read_spans(spans)

    def _whole(self, native: list["chat.OpenAIMessage"], tools: list[Any] | None) -> Prompt:
        """A conversation with the end of its last answer, or as it stands when the next answer is asked for."""
        if native[-1].author.kind.name == "Model":
            example = self._sft(native, tools)[-1]
            return Prompt(example.tokens, example.images)
        return self._prompt(native, tools)


def _read_spans(spans: "Iterable[chat.TokenSpan]") -> Prompt:
    """Spans of text tokens and images as one array."""
    from tml_renderers import chat

    pieces: list[Any] = []
    images = []
    length = 0
    for wrapped in spans:
        span = wrapped.span
        if isinstance(span, chat.EncodedTextTokenSpan):
            pieces.append(np.asarray(span.tokens, np.int32))
        elif isinstance(span, chat.ImageAssetPointerTokenSpan):
            data = base64.b64decode(span.location.partition(",")[2])
            images.append(Image(length, span.num_tokens, data, span.format.name.lower()))
            pieces.append(np.full(span.num_tokens, IMAGE_TOKEN, np.int32))
        else:
            raise RenderError(f"a {type(span).__name__} cannot be trained on: only text and images can")
        length += len(pieces[-1])
    return Prompt(np.concatenate(pieces) if pieces else np.zeros(0, np.int32), tuple(images))


def _as_read(messages: list[Message]) -> list[Message]:
    """Messages as the vendor reads them: developer as system, reasoning as a part, calls with ids, images inline."""
    read: list[Message] = []
    calls: list[str] = []  # ids of the last calls, to be answered in order
    count = 0
    for i, message in enumerate(messages):
        role = message["role"]
        new: Message = {"role": "system" if role == "developer" else role, "content": message["content"]}
        if "name" in message:
            new["name"] = message["name"]
        if role == "assistant":
            reasoning, content = split_reasoning(message)
            if "<think>" in str(message["content"]):
                new["content"] = content
            if reasoning:
                parts = [{"type": "thinking", "thinking": reasoning}]
                new["content"] = parts + ([{"type": "text", "text": content}] if content else [])
            if "tool_calls" in message:
                numbered = []
                for call in message["tool_calls"]:
                    # The form that Kimi K2 asks for; the others take any.
                    numbered.append({"id": f"functions.{call['function']['name']}:{count}", **call})
                    count += 1
                new["tool_calls"] = numbered
                calls = [call["id"] for call in numbered]
        elif role == "tool":
            call_id = message.get("tool_call_id") or (calls.pop(0) if calls else None)
            if call_id is not None:
                new["tool_call_id"] = call_id
        if isinstance(new["content"], list) and role != "assistant":
            new["content"] = [
                part if part["type"] == "text" else _inline_image(part, f"messages[{i}].content[{j}]")
                for j, part in enumerate(new["content"])
            ]
        read.append(new)
    return read


_IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def _inline_image(part: dict[str, Any], place: str) -> dict[str, Any]:
    """An image as the vendor takes it: OpenAI's form with its bytes in a `data:` URL.

    Raises:
        RenderError: it is on the web, cannot be read, or is neither PNG nor JPEG.
    """
    import PIL.Image

    location = part["image"] if part["type"] == "image" else part["image_url"]
    if isinstance(location, dict):
        location = location.get("url")
    if not isinstance(location, str):
        raise RenderError(f"{place}: the image must be a path or a data: URL")
    if location.startswith(("http://", "https://")):
        raise RenderError(f"{place}: the image is on the web ({location[:80]}): download it and name the file instead")
    try:
        if location.startswith("data:"):
            data = base64.b64decode(location.partition(",")[2], validate=True)
        else:
            path = unquote(location.removeprefix("file://")) if location.startswith("file://") else location
            data = Path(path).expanduser().read_bytes()
    except (OSError, binascii.Error, ValueError) as error:
        raise RenderError(f"{place}: the image cannot be read: {error}") from error
    kind = next((kind for magic, kind in _IMAGE_TYPES.items() if data.startswith(magic)), None)
    if kind is None:
        raise RenderError(f"{place}: the image is neither PNG nor JPEG, which are all that can be sent")
    inlined = {
        "type": "image_url",
        "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"},
    }
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise RenderError(f"{place}: the image cannot be read: {error}") from error
    return inlined


def _answer_text(content: Any) -> str:
    from tml_renderers import chat

    if isinstance(content, chat.Text):
        return content.text
    if isinstance(content, chat.Thinking):
        return f"<think>\n{content.text}\n</think>\n\n" if content.text.strip() else ""
    if isinstance(content, chat.InvokeTool):
        arguments = {arg.name: orjson.loads(arg.value) for arg in content.args}
        call = orjson.dumps({"name": content.name, "arguments": arguments}).decode()
        return f"<tool_call>\n{call}\n</tool_call>"
    return ""


def _first_words(error: Exception) -> str:
    """A renderer's complaint without the data it repeats, such as the whole of an image."""
    text = str(error)
    return text if len(text) <= 200 else f"{text[:200]}…"
