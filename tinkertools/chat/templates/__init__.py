"""Rendering with a model's own chat template, for every model that the vendor's renderers do not cover.

A conversation is written as text with the template (`program`), the span of each assistant turn in it is found by
comparing renders as text (`turns`, `writing`), and the tokenizer's offsets turn spans of characters into weights of
tokens (`encoding`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tinkertools.chat.conversations import Conversation
from tinkertools.chat.examples import Example, Prompt, RenderError, trimmed, unite
from tinkertools.chat.templates.controls import ControlTokens
from tinkertools.chat.templates.encoding import Encoder
from tinkertools.chat.templates.program import ChatTemplate
from tinkertools.chat.templates.writing import Rendered, Writer
from tinkertools.chat.tokenizing import cores, end_of_turn_tokens, load_tokenizer, without_tokenizers_threads
from tinkertools.config import TrainOnWhat
from tinkertools.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = "chat-template"

# How many conversations, and characters of them, go through the tokenizer at once: it needs some 30 bytes a character.
_BLOCK = 128
_BLOCK_CHARACTERS = 1_000_000


class ChatTemplateRenderer:
    """Renders with the model's own chat template: what `writer` writes becomes tokens and weights in `encoder`."""

    name = CHAT_TEMPLATE

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_tokens: Sequence[int],
        train_on_what: TrainOnWhat = "ALL_ASSISTANT_MESSAGES",
    ) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        controls = ControlTokens(tokenizer)
        self.train_on_what = train_on_what
        self.stop_tokens = list(stop_tokens)
        self.stop_tokens += self._ending_of_template(controls)
        self.bos_token: int | None = tokenizer.bos_token_id
        self.writer = Writer(self._template, controls, self._texts_of(self.stop_tokens), train_on_what)
        self.encoder = Encoder(tokenizer, controls)

    @property
    def identity(self) -> dict[str, str]:
        """What decides, beside the conversation, the tokens and weights."""
        special = sorted(self._tokenizer.special_tokens_map.items())
        return {
            "renderer": self.name,
            "train_on_what": self.train_on_what,
            "chat_template": self._template.source,
            "tokenizer": "\0".join([self.encoder.backend.to_str(), repr(self.stop_tokens), repr(special)]),
        }

    def generation_prompt(self, conversation: Conversation) -> Prompt:
        """The tokens after which the model answers the last message.

        Raises:
            RenderError: the template refuses the conversation, or it holds images.
        """
        return Prompt(self.encoder.encode(self.writer.write_prompt(conversation)).tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text: control tokens, such as the end of the turn, left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, control tokens included."""
        return self.encoder.text(tokens)

    def render(self, conversations: Iterable[Conversation]) -> Iterator[list[Example] | RenderError]:
        """Each conversation's examples, in order, or why it has none.

        Blocks of texts are encoded on all cores, each thread with a tokenizer of its own: threads that share one wait
        for its cache. Meanwhile the next texts are written.
        """
        remaining = iter(conversations)
        waiting: deque[Future[list[list[Example] | RenderError]]] = deque()
        with without_tokenizers_threads(), ThreadPoolExecutor(cores()) as threads:
            while block := _block(remaining):
                written = [self._written_or_error(conversation) for conversation in block]
                waiting.append(threads.submit(self._finish, written))
                if len(waiting) > 2 * cores():
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _finish(self, written: list[list[Rendered] | RenderError]) -> list[list[Example] | RenderError]:
        """The examples of what was written, in the same order."""
        texts = [rendered for item in written if isinstance(item, list) for rendered in item]
        encoded = iter(self.encoder.encode_all(texts))
        found: list[list[Example] | RenderError] = []
        for item in written:
            if isinstance(item, RenderError):
                found.append(item)
            else:
                found.append(_united([next(encoded) for _ in item]))
        return found

    def _written_or_error(self, conversation: Conversation) -> list[Rendered] | RenderError:
        try:
            return self.writer.write(conversation)
        except RenderError as error:
            return error

    def _ending_of_template(self, controls: ControlTokens) -> list[int]:
        """The control token that ends an answer as the template writes it, where the model's configuration omits it."""
        ending = self._template.after_an_answer()
        if any(text in ending for text in self._texts_of(self.stop_tokens)):
            return []
        return [number for control, number in controls.ids.items() if ending.endswith(control)]

    def _texts_of(self, tokens: Sequence[int]) -> list[str]:
        return [str(self._tokenizer.convert_ids_to_tokens(token)) for token in tokens]


def _united(encoded: list[Example | RenderError]) -> list[Example] | RenderError:
    """A conversation's examples, of what its texts became; the first error, if there is one."""
    examples = []
    for item in encoded:
        if isinstance(item, RenderError):
            return item
        examples.append(trimmed(item))
    return unite(examples)


def _block(conversations: Iterator[Conversation]) -> list[Conversation]:
    """The next conversations, as many as go through the tokenizer at once."""
    block: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        block.append(conversation)
        characters += sum(len(message["content"]) for message in conversation["messages"])
        if len(block) == _BLOCK or characters > _BLOCK_CHARACTERS:
            break
    return block


def load_template_renderer(base_model: str, train_on_what: TrainOnWhat) -> ChatTemplateRenderer:
    """The renderer of a base model: a folder, or a name on the Hub.

    Raises:
        ModelError: it has no tokenizer, no chat template, or no end-of-turn token.
    """
    tokenizer = load_tokenizer(base_model)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{base_model} has no chat template, so a conversation cannot be written as the model expects it",
            hint="use the instruct or chat variant of the model, put a chat_template.jinja into its folder, or name a "
            "renderer: --renderer NAME",
        )
    renderer = ChatTemplateRenderer(tokenizer, end_of_turn_tokens(base_model, tokenizer), train_on_what)
    if not renderer.stop_tokens:
        raise ModelError(
            f"{base_model} names no end-of-turn token, so its answers could never end",
            hint="set eos_token in its tokenizer_config.json",
        )
    return renderer
