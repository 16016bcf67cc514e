"""`tt test --interactive`: a chat with an adapter, and with its base model where that is asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkertools.answers import Settings, answers
from tinkertools.comparison import Questions, open_models
from tinkertools.errors import DataError, EngineError
from tinkertools.prompts import Prompt
from tinkertools.reporting import Notify
from tinkertools.runs.directory import Weights

if TYPE_CHECKING:
    from tinkertools.chat.conversations import Message
    from tinkertools.chat.rendering import Renderer
    from tinkertools.engines import SamplingClient

HELP = """/base TEXT      the base model answers this; alone: it answers the last question
/compare TEXT   both answer, the adapter's answer stays in the chat; alone: the last question
/reset          forget what was said
/quit           leave (so do Ctrl-D and Ctrl-C)"""

# Gives the next line that the user types, without its end; None at the end.
ReadLine = Callable[[str], str | None]


@dataclass
class Chat:
    """What was said so far, and who can be asked."""

    tuned: "SamplingClient"
    base: "SamplingClient"
    renderer: "Renderer"
    settings: Settings
    messages: "list[Message]" = field(default_factory=list)

    def answer(self, sampler: "SamplingClient") -> str:
        """What a model answers to the chat as it is.

        Raises:
            DataError: the chat cannot be rendered.
            EngineError: the model gives no answer: the chat is too long for it, or the server is gone.
        """
        prompt = Prompt({"messages": self.messages})
        found = next(answers(sampler, self.renderer, [prompt], self.settings))
        if found.text is None:
            raise EngineError(f"no answer: {found.error}")
        return found.text

    def say(self, text: str) -> None:
        """The user says something; after the last answer was left out, its question too."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        self.messages.append({"role": "user", "content": text})

    def ask_again(self) -> bool:
        """Take the last answer back, so that its question stands at the end; whether there is one."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self.messages)

    def keep(self, answer: str) -> None:
        """An answer becomes part of the chat."""
        self.messages.append({"role": "assistant", "content": answer})


def chat(weights: Weights, base_model: str, questions: Questions, read: ReadLine, answer: Notify, say: Notify) -> None:
    """Talk until the user leaves.

    Args:
        weights: the adapter.
        base_model: its base; empty where only a server can say.
        questions: how models are asked.
        read: gives the user's lines.
        answer: is given each answer.
        say: is told everything else.
    """
    with open_models(weights, base_model, questions, say) as (service, base, source, renderer):
        sampler = service.create_sampling_client(source, base)
        talk = Chat(sampler, service.create_sampling_client(None, base), renderer, questions.settings)
        say(HELP)
        while (line := read("> ")) is not None:
            if line.strip() == "/quit":
                return
            before = [*talk.messages]
            try:
                _take(talk, line.strip(), answer, say)
            except (DataError, EngineError) as error:
                say(f"{error.message}; the last line is forgotten, /reset forgets all")
                talk.messages = before


def _take(talk: Chat, line: str, answer: Notify, say: Notify) -> None:
    """One line of the user's."""
    word, _, text = line.partition(" ")
    text = text.strip()
    if not line:
        return
    if word == "/reset":
        talk.messages.clear()
        say("forgotten")
    elif word in ("/base", "/compare"):
        if text:
            talk.say(text)
        elif not talk.ask_again():
            say("nothing was asked yet")
            return
        _answer_with_base(talk, answer, both=word == "/compare")
    elif word.startswith("/"):
        say(HELP)
    else:
        talk.say(line)
        said = talk.answer(talk.tuned)
        answer(said)
        talk.keep(said)


def _answer_with_base(talk: Chat, answer: Notify, *, both: bool) -> None:
    """The base answers, and the adapter too where `both`: then its answer stays in the chat."""
    from_base = talk.answer(talk.base)
    answer(f"[base] {from_base}")
    if both:
        tuned = talk.answer(talk.tuned)
        answer(f"[adapter] {tuned}")
        talk.keep(tuned)
    else:
        talk.keep(from_base)
