"""Judges on the loopback that speak the APIs of OpenAI and Anthropic, and a stand-in for who judges."""

import itertools
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import Loopback

from tinkertools.reporting import Report

KEY = "sk-planted-5f0e7c2a91"


@dataclass(frozen=True)
class Asked:
    """A request: its path, its headers in lower case, its body, and the question in it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def system(self) -> str:
        return str(self.body.get("system") or self.body["messages"][0]["content"])

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def code(self) -> str:
        found = re.search(r"where CODE is (\w+)", self.system)
        assert found is not None
        return found[1]

    def section(self, name: str) -> str:
        """The text between the lines of a name, as an honest judge sees it."""
        start, end = f"<<begin {self.code} {name}>>\n", f"\n<<end {self.code} {name}>>"
        assert self.text.count(start) == self.text.count(end) == 1
        return self.text.split(start)[1].split(end)[0]

    def verdict(self, value: str, reason: str = "So it is.") -> str:
        """A reply with a verdict as it should be."""
        return f'{reason}\n{{"verdict": "{value}", "code": "{self.code}"}}'


@dataclass(frozen=True)
class Raw:
    """An answer that is no reply: a status, a body (half of which is sent, where `half`), and headers."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    half: bool = False


# What a judge says to the question, or the answer itself.
Judge = Callable[[Asked], str | Raw]


def prefers(text: str) -> Judge:
    """A judge for whom the answer that holds `text` is better."""

    def judge(asked: Asked) -> str:
        a, b = (text in asked.section(f"answer {name}") for name in "AB")
        return asked.verdict("tie" if a == b else "A" if a else "B")

    return judge


@contextmanager
def interrupting(judge: Judge, question: int) -> Iterator[Judge]:
    """A judge at one of whose questions Ctrl-C comes to who waits; that one is answered when the block ends.

    Args:
        judge: who answers.
        question: the number, from 1 on, of the question at which Ctrl-C comes.
    """
    numbers, let_go = itertools.count(1), threading.Event()

    def answer(asked: Asked) -> str | Raw:
        if next(numbers) == question:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            let_go.wait(60)
        return judge(asked)

    try:
        yield answer
    finally:
        let_go.set()


class JudgeServer(Loopback):
    """Answers as `judge` does, and counts."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(_Handler)
        # Many tests have a server of their own: its end is not to take half a second.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self.judge = judge
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        self.usage: bool = True


class _Handler(BaseHTTPRequestHandler):
    hub: JudgeServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body in one packet: the second of two waits for the client's word on the first

    def handle(self) -> None:
        with suppress(OSError):  # who asked has gone
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        hub = self.hub
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except (OSError, ValueError):  # who asked has gone
            self.close_connection = True
            return
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        with hub.lock:
            hub.asked.append(asked)
            hub.at_once += 1
            hub.most_at_once = max(hub.most_at_once, hub.at_once)
        try:
            said = hub.judge(asked)
        finally:
            with hub.lock:  # before the answer is sent: who has it may ask the next one
                hub.at_once -= 1
        raw = said if isinstance(said, Raw) else Raw(body=json.dumps(_reply(asked, said, hub.usage)).encode())
        with suppress(OSError):
            self._send(raw)

    def _send(self, raw: Raw) -> None:
        self.send_response(raw.status)
        for name, value in ({"Content-Type": "application/json"} | raw.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw.body)))
        self.end_headers()
        self.wfile.write(raw.body[: len(raw.body) // 2] if raw.half else raw.body)
        self.close_connection = self.close_connection or raw.half


def _reply(asked: Asked, text: str, usage: bool) -> dict[str, Any]:
    if asked.path == "/v1/messages":
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": text}],
        } | ({"usage": {"input_tokens": 100, "output_tokens": 10}} if usage else {})  # fmt: skip
    return {
        "id": "c1", "object": "chat.completion", "created": 0, "model": "gpt-x",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    } | ({"usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}} if usage else {})  # fmt: skip


@contextmanager
def no_progress(what: str, total: float | None, unit: str) -> Iterator[Report]:
    """A display of nothing."""

    def report(done: float, note: str = "") -> None:
        assert total is not None and done <= total

    yield report
