"""A proxy between the SDK and a server that breaks chosen requests, each in a chosen way."""

import asyncio
import json
import random
from asyncio import sleep  # by its own name: tests shorten `asyncio.sleep`, and a delay here is meant
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from standin import HttpServer, Request, Response, as_json, refusal

Kind = Literal[
    "delay",  # the answer comes late
    "drop_before",  # the connection closes, and the server never saw the request
    "drop_after",  # the connection closes after the server has done it: the answer is lost
    "duplicate",  # the server gets it twice; the second answer is passed on
    "truncate",  # the server has done it, and half of the answer comes
    "busy",  # 429
    "unavailable",  # 503
    "error_before",  # 500, and the server never saw the request
    "error_after",  # 500, and the server has done it
    "no_http",  # bytes that are no HTTP
    "no_json",  # 200 with bytes that are no JSON
    "other_json",  # 200 with JSON of something else
    "echo",  # 400 whose body repeats the headers of the request, the key among them
    "hang",  # taken, never answered
]
_DELAY = 0.05

# How often each endpoint is spoken to in an undisturbed run of six steps with two checkpoints.
_TALK = {
    "client/config": 2, "client/dynamic_config": 2, "create_session": 1, "get_server_capabilities": 1,
    "create_model": 1, "get_info": 1, "forward_backward": 7, "optim_step": 6, "save_weights": 3,
    "save_weights_for_sampler": 3, "save_weights_external": 3, "retrieve_future": 24, "external_weights_urls": 3,
    "files": 6, "finish": 1,
}  # fmt: skip
# Where the faults go: half of them to what must be done exactly once.
_ONCE = ("forward_backward", "optim_step", "save_weights", "save_weights_for_sampler", "save_weights_external")
_KINDS: dict[Kind, int] = {
    "delay": 2, "drop_before": 4, "drop_after": 4, "duplicate": 4, "truncate": 3, "busy": 2, "unavailable": 2,
    "error_before": 3, "error_after": 4, "no_http": 2, "no_json": 2, "other_json": 2, "echo": 1, "hang": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What happens to the `number`-th request (from 1; 0 is each) of an endpoint (`*` is each)."""

    kind: Kind
    endpoint: str
    number: int = 0


@dataclass(frozen=True)
class Schedule:
    """The faults of a run."""

    faults: tuple[Fault, ...]

    @classmethod
    def from_seed(cls, seed: int, *, duplicates: bool) -> "Schedule":
        """One to three faults. Without `duplicates` no request reaches the server twice by the proxy's doing."""
        chance = random.Random(seed)
        kinds = {kind: weight for kind, weight in _KINDS.items() if duplicates or kind != "duplicate"}
        faults = []
        for _ in range(chance.randint(1, 3)):
            endpoint = chance.choice(_ONCE if chance.random() < 0.5 else list(_TALK))
            kind = chance.choices(list(kinds), list(kinds.values()))[0]
            faults.append(Fault(kind, endpoint, chance.randint(1, _TALK[endpoint])))
        return cls(tuple(faults))


class Proxy(HttpServer):
    """Passes requests on to a server at `upstream`, but for the faults.

    Attributes:
        requests: how many came, by endpoint.
        met: the faults that happened.
    """

    def __init__(self, upstream: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__()
        self._upstream = urlsplit(upstream)
        self._faults = faults
        self.requests: Counter[str] = Counter()
        self.met: list[Fault] = []

    async def serve(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Pass a request on, or break it."""
        self.requests[request.endpoint] += 1
        fault = self._fault_of(request.endpoint)
        if fault is None:
            writer.write(await self._forward(request))
            await writer.drain()
            return True
        self.met.append(fault)
        return await self._break(fault.kind, request, writer)

    def _fault_of(self, endpoint: str) -> Fault | None:
        for fault in self._faults:
            if fault.endpoint in (endpoint, "*") and fault.number in (0, self.requests[endpoint]):
                return fault
        return None

    async def _break(self, kind: Kind, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Do what the fault does; return whether the connection stays open."""
        made: dict[Kind, Response] = {
            "busy": refusal(429, "too many requests"),
            "unavailable": refusal(503, "not now"),
            "error_before": refusal(500, "Internal Server Error"),
            "error_after": refusal(500, "Internal Server Error"),
            "no_json": Response(200, b"\xff\x00<html>"),
            "other_json": as_json({"weather": ["fine", 21]}),
            "echo": refusal(400, f"cannot read: {request.headers.get('x-api-key')} {json.dumps(request.headers)}"),
        }
        answer = b""
        if kind in ("delay", "drop_after", "duplicate", "truncate", "error_after"):
            answer = await self._forward(request)
        if kind == "duplicate":
            answer = await self._forward(request)
        match kind:
            case "hang":
                await asyncio.get_running_loop().create_future()
            case "drop_before" | "drop_after":
                return False
            case "no_http":
                writer.write(b"\x16\x03\x01 this is another protocol\r\n\r\n")
                return False
            case "truncate":
                writer.write(answer[: len(answer) - max(len(answer.partition(b"\r\n\r\n")[2]) // 2, 1)])
                await writer.drain()
                return False
            case "delay":
                await sleep(_DELAY)
        writer.write(made[kind].encode() if kind in made else answer)
        await writer.drain()
        return True

    async def _forward(self, request: Request) -> bytes:
        """The server's whole answer, as bytes."""
        assert self._upstream.hostname is not None
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port, limit=2**26)
        try:
            headers = request.headers | {"content-length": str(len(request.body))}
            headers.pop("transfer-encoding", None)
            lines = [f"{request.method} {request.target} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + request.body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            return head + await reader.readexactly(length)
        finally:
            writer.close()
