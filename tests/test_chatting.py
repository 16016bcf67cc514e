"""`tt test --interactive`: what lines from stdin do, what the models are then sent, and how a chat ends."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkertools import chatting
from tinkertools.answers import Answer, answers
from tinkertools.chatting import HELP
from tinkertools.local.sampling import SamplingClient

Tt = Callable[..., Any]


@pytest.fixture(scope="session")
def adapter(untied: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter."""
    folder = tmp_path_factory.mktemp("adapters") / "chatty"
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(plain, config).save_pretrained(str(folder))
    return folder


@dataclasses.dataclass
class Told:
    """A chat as it went: what the adapter (True) or the base was sent, as text, and what was printed."""

    code: int
    sent: list[tuple[bool, str]]
    answers: list[str]
    out: str
    err: str


Talk = Callable[..., Told]


@pytest.fixture
def talk(tt: Tt, untied: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Have a chat of these lines, with answers of the real models."""
    tokenizer = AutoTokenizer.from_pretrained(untied)
    sent: list[tuple[bool, str]] = []
    sample = SamplingClient.sample

    def watched(self: SamplingClient, prompt: Any, *args: Any, **options: Any) -> Any:
        sent.append((self._adapter is not None, str(tokenizer.decode(prompt.to_ints()))))
        return sample(self, prompt, *args, **options)

    monkeypatch.setattr(SamplingClient, "sample", watched)
    given: list[str] = []

    def noted(*args: Any) -> Any:
        for answer in answers(*args):
            given.append(answer.shown)
            yield answer

    monkeypatch.setattr(chatting, "answers", noted)

    def run(*lines: str, stdin: Any = None) -> Told:
        sent.clear()
        given.clear()
        monkeypatch.setattr(sys, "stdin", stdin or io.StringIO("".join(f"{line}\n" for line in lines)))
        found = tt("test", "--interactive", "--lora-weights", adapter, "--max-tokens", 4, "--temperature", 0)
        return Told(found.code, [*sent], [*given], found.out, found.err)

    return run


def prompt(*texts: str) -> str:
    """What a model is sent of a chat, the user's turns and answers by turns."""
    turns = [f"<|im_start|>{('user', 'assistant')[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(texts)]
    return "".join(turns) + "<|im_start|>assistant\n"


def test_a_chat_has_a_memory(talk: Talk) -> None:
    told = talk("hello", "", "  and then?  ", "/quit", "not read")
    assert told.code == 0, told.err
    first, second = told.answers
    assert told.sent == [(True, prompt("hello")), (True, prompt("hello", first, "and then?"))]
    assert told.out == f"{first}\n{second}\n"
    assert HELP in told.err and "adapter: " in told.err


def test_the_base_answers_a_question_of_its_own(talk: Talk) -> None:
    told = talk("/base hello", "more")
    assert told.code == 0, told.err
    first, second = told.answers
    assert told.sent == [(False, prompt("hello")), (True, prompt("hello", first, "more"))]
    assert told.out == f"[base] {first}\n{second}\n"


def test_the_base_answers_the_last_question(talk: Talk) -> None:
    told = talk("/base", "a", "b", "/base", "c")
    assert told.code == 0, told.err
    a, b, of_base, c = told.answers
    assert told.sent == [
        (True, prompt("a")),
        (True, prompt("a", a, "b")),
        (False, prompt("a", a, "b")),
        (True, prompt("a", a, "b", of_base, "c")),
    ]
    assert told.out == f"{a}\n{b}\n[base] {of_base}\n{c}\n"
    assert told.err.count("nothing was asked yet") == 1


def test_both_answer(talk: Talk) -> None:
    told = talk("/compare", "/compare hello", "/compare", "more")
    assert told.code == 0, told.err
    base, tuned, base_again, tuned_again, more = told.answers
    assert (base, tuned) == (base_again, tuned_again)
    assert base != tuned
    assert told.sent == [
        (False, prompt("hello")), (True, prompt("hello")), (False, prompt("hello")), (True, prompt("hello")),
        (True, prompt("hello", tuned, "more")),
    ]  # fmt: skip
    assert told.out == f"[base] {base}\n[adapter] {tuned}\n" * 2 + f"{more}\n"


def test_a_chat_is_forgotten(talk: Talk) -> None:
    told = talk("hello", "/reset", "/base", "hello")
    assert told.code == 0, told.err
    assert told.sent == [(True, prompt("hello"))] * 2
    assert "forgotten\n" in told.err and "nothing was asked yet" in told.err


def test_an_unknown_command_says_which_there_are(talk: Talk) -> None:
    told = talk("/help me", "/quit now", "/BASE x", "/")
    assert (told.code, told.sent, told.out) == (0, [], "")
    assert told.err.count(HELP) == 5


@pytest.mark.parametrize("lines", [(), ("",), ("/quit",), ("  /quit ",)])
def test_the_end(talk: Talk, lines: tuple[str, ...]) -> None:
    told = talk(*lines)
    assert (told.code, told.sent, told.out) == (0, [], "")


def test_a_last_line_without_an_end(talk: Talk) -> None:
    told = talk(stdin=io.StringIO("hello"))
    assert (told.code, told.sent) == (0, [(True, prompt("hello"))])


def test_what_is_too_long_is_forgotten_and_the_chat_goes_on(talk: Talk) -> None:
    long = "word " * 200
    told = talk("hello", long, f"/base {long}", f"/compare {long}", "more")
    assert told.code == 0, told.err
    hello, *failed, more = told.answers
    assert len(failed) == 3
    assert told.sent[-1] == (True, prompt("hello", hello, "more"))
    assert told.out == f"{hello}\n{more}\n"
    assert told.err.count("the model takes 128") == 3
    assert told.err.count("the last line is forgotten, /reset forgets all") == 3


def test_a_chat_that_has_become_too_long(talk: Talk) -> None:
    """It says so, stays as it was, and can be begun anew."""
    told = talk(*["one two three four five six seven eight nine ten"] * 12, "/reset", "hello")
    assert told.code == 0, told.err
    assert "leaves no room to answer" in told.err or "the model takes 128" in told.err
    assert told.sent[-1] == (True, prompt("hello"))
    assert not any("no answer" in text for _, text in told.sent)
    assert "no answer" not in told.out


def test_a_server_that_gives_no_answer(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's failure after the base's answer leaves the chat as it was."""
    coming = [Answer("fine"), Answer("from base"), Answer(None, "gone"), Answer("back")]
    seen: list[Any] = []

    def answers(sampler: Any, renderer: Any, prompts: Any, settings: Any) -> Any:
        seen.append([message["content"] for message in prompts[0].messages])
        yield coming.pop(0)

    monkeypatch.setattr(chatting, "answers", answers)
    told = talk("a", "/compare", "b")
    assert told.code == 0, told.err
    assert seen == [["a"], ["a"], ["a"], ["a", "fine", "b"]]
    assert told.out == "fine\n[base] from base\nback\n"
    assert "no answer: gone; the last line is forgotten" in told.err


class _Keyboard(io.StringIO):
    """Someone who types a line, then Ctrl-C."""

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        return super().readline() or self._break()

    def _break(self) -> str:
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_chat(talk: Talk, tmp_path: Path) -> None:
    told = talk(stdin=_Keyboard("hello\n"))
    assert (told.code, told.out) == (130, f"{told.answers[0]}\n")
    assert told.err.endswith("error: stopped\n  → tt test --interactive begins a new chat\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_model_answers(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(chatting, "answers", answers)
    told = talk("hello")
    assert (told.code, told.out) == (130, "")


def test_no_results_are_written(talk: Talk, tmp_path: Path) -> None:
    assert talk("hello").code == 0
    assert list(tmp_path.iterdir()) == []


def test_answers_of_any_text_are_shown_as_they_are(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatting, "answers", lambda *_: iter([Answer("[bold]x[/bold] :smile:\n")]))
    assert talk("hello").out == "[bold]x[/bold] :smile:\n\n"


def test_the_temperature_is_the_users(tt: Tt, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    sample = SamplingClient.sample

    def watched(self: SamplingClient, prompt: Any, count: int, params: Any, **options: Any) -> Any:
        asked.append(json.loads(params.model_dump_json()))
        return sample(self, prompt, count, params, **options)

    monkeypatch.setattr(SamplingClient, "sample", watched)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    found = tt("test", "--interactive", "--lora-weights", adapter, "--temperature", 0.25, "--max-tokens", 3,
               "--seed", 5)  # fmt: skip
    assert found.code == 0, found.err
    assert [(a["temperature"], a["max_tokens"], a["seed"], a["stop"]) for a in asked] == [(0.25, 3, 5, [2])]
