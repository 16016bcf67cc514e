"""A stand-in for a Tinker server: it answers as one and computes nothing.

What it is: HTTP on 127.0.0.1, on a thread of this process, with the endpoints that `tt` and the SDK (0.16 to 0.38) use.
Every request is done at once, in the order in which requests arrive, and its future is ready when it is asked for. Each
target has the logprob -1.0. The adapters are two small tensors in PEFT's layout, filled with the number of steps.

What it keeps is a ledger: which batches went into which optimizer step of which model, and what every saved state and
every saved adapter holds of that. So a test can read from a run's final weights what was trained on, in which order,
and how often.

What it is not: a model, a scheduler, or a judge of requests. It checks no key, takes any shape of data, and accepts
what a real server would refuse. Where the question is whether requests are understood, ask a real server.
"""

import asyncio
import email.utils
import hashlib
import io
import itertools
import json
import math
import struct
import tarfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from asyncio import sleep  # by its own name: tests shorten `asyncio.sleep`, and a delay here is meant
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from safetensors.numpy import save

T = TypeVar("T")

API = "/api/v1/"
_FILES = "/files/"
_PROTOBUF = "application/x-protobuf"
_RANK = 2
_LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
_HIDDEN = 8


@dataclass(frozen=True)
class Request:
    """A request of HTTP."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """Without what stands behind the question mark."""
        return unquote(urlsplit(self.target).path)

    @property
    def endpoint(self) -> str:
        """`optim_step` of `/api/v1/optim_step`; of a path with names in it, the last part that is none."""
        parts = self.path.removeprefix(API).strip("/").split("/")
        if self.path.startswith(_FILES):
            return "files"
        if parts[0] in ("training_runs", "sessions", "samplers", "checkpoints"):
            return parts[-1] if parts[-1] in ("external_weights_urls", "archive", "finish") else parts[0]
        return "/".join(parts)


@dataclass(frozen=True)
class Response:
    """An answer of HTTP."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As it goes over the wire."""
        headers = {"content-type": "application/json", "content-length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


def as_json(value: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(status, json.dumps(value).encode())


def refusal(status: int, detail: str) -> Response:
    """An error as FastAPI writes it."""
    return as_json({"detail": detail}, status)


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None when there is none any more."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (part.partition(":") for part in rest)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    method, target, _ = line.split(" ")
    return Request(method, target, headers, body)


class HttpServer(ABC):
    """A server on a free port of this machine, on a thread of its own, while its `with` block runs."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=type(self).__name__)
        self.port = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._talk_to, "127.0.0.1", 0, limit=2**26))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def refuse_connections(self) -> None:
        """Listen no more; the port stays the one it was."""
        self._loop.call_soon_threadsafe(self._server.close)

    async def _close(self) -> None:
        self._server.close()
        talks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _talk_to(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader)) is not None:
                if not await self.serve(request, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @abstractmethod
    async def serve(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection stays open."""


@dataclass(frozen=True)
class Step:
    """An optimizer step: the digests of the examples in it, in order, and its learning rate."""

    examples: tuple[str, ...]
    learning_rate: float


# All steps that made some weights, the first one first.
Lineage = tuple[Step, ...]


@dataclass(frozen=True)
class Pass:
    """A forward or a forward and backward pass, or a step, as it came.

    Attributes:
        kind: `forward`, `forward_backward` or `optim_step`.
        loss_fn: the loss; empty for a step.
        config: its settings.
        inputs: the loss's inputs of each datum.
    """

    kind: str
    loss_fn: str = ""
    config: dict[str, float] | None = None
    inputs: tuple[dict[str, list[float]], ...] = ()


@dataclass
class Model:
    """A model in training."""

    base_model: str
    rank: int
    steps: Lineage = ()
    gathered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What is kept under a `tinker://` path."""

    path: str
    model: Model
    steps: Lineage
    saved: datetime
    ttl_seconds: int | None

    @property
    def run(self) -> str:
        """The training run's part of the path."""
        return self.path.removeprefix("tinker://").split("/")[0]

    def describe(self) -> dict[str, Any]:
        """As lists of checkpoints have it."""
        _, kind, name = self.path.removeprefix("tinker://").split("/")
        types = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
        expires = self.saved + timedelta(seconds=self.ttl_seconds) if self.ttl_seconds else None
        return {
            "checkpoint_id": f"{kind}/{name}", "checkpoint_type": types[kind], "time": self.saved.isoformat(),
            "tinker_path": self.path, "size_bytes": 1000, "expires_at": expires.isoformat() if expires else None,
        }  # fmt: skip


class StandIn(HttpServer):
    """The server.

    Args:
        base_models: the names it has.
        knows_repeats: a repeated sequence number of a model gets the answer of the first time, and nothing is done
            again, as the vendor's service does it; without, every request is done, as SkyRL does it.
        latency: seconds before each answer.
        pyqwest: whether newer SDKs are told to use their own transport instead of httpx's.
        answer: tokens of a sample; a second one of the same request says them twice, and so on.
        title: what its description of itself is called; None where it has none.
        losses: the names of the losses that it takes.

    Attributes:
        passes: all passes and steps, in the order in which they were done.
        models: by their ids.
        checkpoints: by their paths.
        requests: how many came, by endpoint.
    """

    def __init__(
        self, base_models: list[str], *, knows_repeats: bool = True, latency: float = 0.0, pyqwest: bool = True,
        answer: tuple[int, ...] = (5, 6, 7), title: str | None = None, losses: tuple[str, ...] = _LOSSES,
    ) -> None:  # fmt: skip
        super().__init__()
        self._base_models = base_models
        self._knows_repeats = knows_repeats
        self._latency = latency
        self._pyqwest = pyqwest
        self._answer = answer
        self._title = title
        self._losses = losses
        self.passes: list[Pass] = []
        self.models: dict[str, Model] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.requests: Counter[str] = Counter()
        self._results: dict[str, dict[str, Any]] = {}
        self._futures: dict[tuple[str, object], str] = {}
        self._samplers: dict[str, str] = {}
        self._samples: dict[str, list[str]] = {}
        self._refused: dict[str, Response] = {}

    async def serve(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer a request."""
        response = self.respond(request)
        if self._latency:
            await sleep(self._latency)
        writer.write(response.encode())
        await writer.drain()
        return True

    def lineage(self, path: str) -> Lineage:
        """What a saved path holds."""
        return self.checkpoints[path].steps

    def expire(self, path: str) -> None:
        """Forget a checkpoint."""
        del self.checkpoints[path]

    def refuse(self, endpoint: str, response: Response) -> None:
        """Give this answer to all requests of an endpoint from now on."""
        self._refused[endpoint] = response

    def allow(self, endpoint: str) -> None:
        """Answer it as before `refuse`."""
        del self._refused[endpoint]

    def respond(self, request: Request) -> Response:
        """The answer to a request, after doing it."""
        self.requests[request.endpoint] += 1
        if request.endpoint in self._refused:
            return self._refused[request.endpoint]
        if request.endpoint == "files":
            return self._file(request.path)
        protobuf = request.headers.get("content-type") == _PROTOBUF
        body = _decode(request.body) if protobuf else json.loads(request.body or b"{}")
        handlers: dict[str, Callable[[Request, dict[str, Any]], Response]] = {
            "GET": self._get, "POST": self._post, "DELETE": self._delete, "PUT": self._get,
        }  # fmt: skip
        return handlers[request.method](request, body)

    def _get(self, request: Request, _: dict[str, Any]) -> Response:
        match request.path.removeprefix(API).split("/"):
            case ["", "openapi.json"] if self._title:
                return as_json({"info": {"title": self._title}})
            case ["healthz"]:
                return as_json({"status": "ok"})
            case ["whoami"]:
                return as_json({"user_urn": "urn:user:standin", "org_urn": "urn:org:standin"})
            case ["get_server_capabilities"]:
                models = [
                    {"model_name": name, "max_context_length": 4096, "trainable": True, "sampleable": True}
                    for name in self._base_models
                ]
                return as_json({"supported_models": models})
            case ["samplers", sampler]:
                source = self._samplers[sampler]
                kept = self.checkpoints.get(source)
                base = kept.model.base_model if kept else source
                return as_json({"sampler_id": sampler, "base_model": base, "model_path": source if kept else None})
            case ["training_runs"]:
                runs = [self._describe(run) for run in self.models]
                return as_json({"training_runs": runs, "cursor": _cursor(len(runs))})
            case ["training_runs", run] if run in self.models:
                return as_json(self._describe(run))
            case ["checkpoints"]:
                found = [kept.describe() for kept in self.checkpoints.values()]
                return as_json({"checkpoints": found, "cursor": _cursor(len(found))})
            case ["training_runs", run, "checkpoints"]:
                found = [kept.describe() for kept in self.checkpoints.values() if kept.run == run]
                return as_json({"checkpoints": found})
            case ["training_runs", run, "checkpoints", kind, name, "external_weights_urls"]:
                return self._external_urls(request, f"tinker://{run}/{kind}/{name}")
            case ["training_runs", run, "checkpoints", *rest, "archive"]:
                # Servers differ in whether the kind is part of the name.
                path = f"tinker://{run}/{'/'.join(['sampler_weights', *rest][-2:])}"
                if path not in self.checkpoints:
                    return refusal(404, f"no checkpoint {path}")
                where = f"http://{request.headers['host']}{_FILES}{path.removeprefix('tinker://')}/archive.tar.gz"
                return Response(302, b"", {"location": where, "expires": email.utils.formatdate(time.time() + 900)})
        return refusal(404, "Not Found")

    def _delete(self, request: Request, _: dict[str, Any]) -> Response:
        match request.path.removeprefix(API).split("/"):
            case ["training_runs", run, "checkpoints", kind, name]:
                if self.checkpoints.pop(f"tinker://{run}/{kind}/{name}", None):
                    return Response(204, b"")
        return refusal(404, "no such checkpoint")

    def _post(self, request: Request, body: dict[str, Any]) -> Response:
        name = request.path.removeprefix(API)
        if request.endpoint == "finish":
            return as_json({})
        plain: dict[str, Callable[[dict[str, Any]], Response]] = {
            "client/config": lambda _: as_json({"use_pyqwest_transport": self._pyqwest, "pjwt_auth_enabled": False}),
            "client/dynamic_config": lambda _: as_json({}),
            "create_session": lambda _: as_json({"session_id": uuid.uuid4().hex, "type": "create_session"}),
            "session_heartbeat": lambda _: as_json({"type": "session_heartbeat"}),
            "telemetry": lambda _: as_json({"status": "accepted"}),
            "get_info": self._info,
            "weights_info": self._weights_info,
            "create_sampling_session": self._sampling_session,
            "retrieve_futures": self._completed,
            "cancel_future": lambda _: as_json({}),
        }  # fmt: skip
        if name in plain:
            return plain[name](body)
        if name == "retrieve_future":
            return self._retrieve(request, body)
        works: dict[str, Callable[[dict[str, Any]], dict[str, Any] | Response]] = {
            "create_model": self._create_model, "unload_model": lambda body: {"model_id": body["model_id"]},
            "forward": lambda body: self._pass(body["forward_input"], None),
            "forward_backward": self._forward_backward,
            "optim_step": self._optim_step,
            "save_weights": lambda body: self._save(body, "weights"),
            "save_weights_for_sampler": lambda body: self._save(body, "sampler_weights"),
            "save_weights_external": lambda body: self._save(body, "external_weights"),
            "load_weights": self._load, "asample": self._sample,
        }  # fmt: skip
        if name not in works:
            return refusal(404, "Not Found")
        return self._promise(body, works[name])

    def _promise(self, body: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any] | Response]) -> Response:
        """Do a request, and say under which id its result is."""
        owner = body.get("model_id") or body.get("sampling_session_id") or body.get("session_id")
        number = body.get("seq_id", (body.get("type"), body.get("model_seq_id")))
        key = (str(owner), number)
        if not (self._knows_repeats and owner and key in self._futures):
            result = work(body)
            if isinstance(result, Response):
                return result
            made = f"request-{len(self._results)}"
            self._results[made] = result
            self._futures[key] = made
            if "sequences" in result and owner:
                self._samples.setdefault(str(owner), []).append(made)
        found = self._futures[key]
        answer: dict[str, Any] = {"request_id": found, "model_id": body.get("model_id")}
        if "sequences" in self._results[found]:
            answer["sample_sequence_ids"] = [uuid.uuid4().hex for _ in self._results[found]["sequences"]]
        return as_json(answer)

    def _retrieve(self, request: Request, body: dict[str, Any]) -> Response:
        result = self._results.get(body["request_id"])
        if result is None:
            return refusal(404, f"no request {body['request_id']}")
        if _PROTOBUF in request.headers.get("accept", "") and {"sequences", "loss_fn_outputs"} & set(result):
            return Response(200, _encode(result), {"content-type": _PROTOBUF})
        return as_json(result)

    def _completed(self, body: dict[str, Any]) -> Response:
        samples = self._samples.get(body["target"]["sampling_session_id"], [])
        done = [{"state": "finished", "request_id": made} for made in samples[body.get("prev_cursor", 0) :]]
        return as_json({"completions": done, "cursor": len(samples)})

    def _create_model(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        if body["base_model"] not in self._base_models:
            return refusal(400, f"unknown base model {body['base_model']}")
        model = f"{body['session_id']}:train:{body['model_seq_id']}"
        self.models[model] = Model(body["base_model"], body["lora_config"]["rank"])
        return {"model_id": model, "type": "create_model"}

    def _info(self, body: dict[str, Any]) -> Response:
        model = self.models[body["model_id"]]
        data = {"arch": "standin", "model_name": model.base_model, "tokenizer_id": model.base_model}
        return as_json({"model_id": body["model_id"], "model_data": data, "is_lora": True, "lora_rank": model.rank})

    def _weights_info(self, body: dict[str, Any]) -> Response:
        kept = self.checkpoints.get(body["tinker_path"])
        if kept is None:
            return refusal(404, f"no checkpoint {body['tinker_path']}")
        return as_json({"base_model": kept.model.base_model, "is_lora": True, "lora_rank": kept.model.rank})

    def _describe(self, run: str) -> dict[str, Any]:
        model = self.models[run]
        return {
            "training_run_id": run, "base_model": model.base_model, "model_owner": "standin", "is_lora": True,
            "lora_rank": model.rank, "last_request_time": datetime.now(UTC).isoformat(),
        }  # fmt: skip

    def _forward(self, given: dict[str, Any]) -> dict[str, Any]:
        lengths = [len(datum["loss_fn_inputs"]["target_tokens"]["data"]) for datum in given["data"]]
        outputs = [{"logprobs": {"data": [-1.0] * n, "dtype": "float32", "shape": [n]}} for n in lengths]
        return {"loss_fn_output_type": "TorchLossReturn", "loss_fn_outputs": outputs, "metrics": {}}

    def _forward_backward(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        model = None if body.get("forward_only") else self.models[body["model_id"]]
        return self._pass(body["forward_backward_input"], model)

    def _pass(self, given: dict[str, Any], model: Model | None) -> dict[str, Any] | Response:
        """A pass; the gradient goes to the model, where there is one."""
        loss = given["loss_fn"]
        if loss not in self._losses:
            # As pydantic says it.
            expected = f"Input should be {', '.join(map(repr, self._losses))}"
            return as_json({"detail": [{"loc": ["body", "forward_backward_input", "loss_fn"], "msg": expected}]}, 422)
        if model is not None:
            model.gathered += tuple(digest(datum) for datum in given["data"])
        inputs = [{name: one["data"] for name, one in datum["loss_fn_inputs"].items()} for datum in given["data"]]
        kind = "forward_backward" if model is not None else "forward"
        self.passes.append(Pass(kind, loss, given.get("loss_fn_config"), tuple(inputs)))
        return self._forward(given)

    def _optim_step(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.models[body["model_id"]]
        model.steps += (Step(model.gathered, body["adam_params"]["learning_rate"]),)
        model.gathered = ()
        self.passes.append(Pass("optim_step"))
        return {"metrics": {"grad_norm": 1.0}, "type": "optim_step"}

    def _save(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        model = self.models[body["model_id"]]
        if body.get("path") is None:
            session = f"{body['model_id']}:sample:{body['sampling_session_seq_id']}"
            path = f"tinker://{body['model_id']}/{kind}/{uuid.uuid4().hex}"
            self._samplers[session] = path
        else:
            session, path = None, f"tinker://{body['model_id']}/{kind}/{body['path']}"
        ttl = body.get("ttl_seconds")
        self.checkpoints[path] = Checkpoint(path, model, model.steps, datetime.now(UTC), ttl)
        return {"path": None if session else path, "sampling_session_id": session}

    def _load(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        kept = self.checkpoints.get(body["path"])
        if kept is None:
            return refusal(404, f"no checkpoint {body['path']}: it may have expired")
        name = body.get("model_id")
        if name is None:
            name = f"{body['session_id']}:train:{body['model_seq_id']}"
            self.models[name] = Model(kept.model.base_model, kept.model.rank)
        self.models[name].steps = kept.steps
        self.models[name].gathered = ()
        return {"path": body["path"], "model_id": name, "type": "load_weights"}

    def _sampling_session(self, body: dict[str, Any]) -> Response:
        source = body.get("model_path") or body["base_model"]
        if source not in self.checkpoints and source not in self._base_models:
            return refusal(404, f"no weights {source}")
        session = f"{body['session_id']}:sample:{body['sampling_session_seq_id']}"
        self._samplers[session] = source
        return as_json({"sampling_session_id": session, "type": "create_sampling_session"})

    def _sample(self, body: dict[str, Any]) -> dict[str, Any]:
        length = sum(len(chunk["tokens"]) for chunk in body["prompt"]["chunks"])
        most = body["sampling_params"].get("max_tokens")
        sequences = []
        for number in range(1, body.get("num_samples", 1) + 1):
            whole = self._answer * number
            tokens = list(whole[:most])
            reason = "stop" if len(tokens) == len(whole) else "length"
            sequences.append({"tokens": tokens, "logprobs": [-1.0] * len(tokens), "stop_reason": reason})
        scored = [None, *[-1.0] * (length - 1)] if body.get("prompt_logprobs") else None
        return {"type": "sample", "sequences": sequences, "prompt_logprobs": scored}

    def _external_urls(self, request: Request, path: str) -> Response:
        if path not in self.checkpoints:
            return refusal(404, f"no checkpoint {path}")
        root = f"http://{request.headers['host']}{_FILES}{path.removeprefix('tinker://')}"
        expires = datetime.now(UTC) + timedelta(minutes=15)
        return as_json({"urls": {name: f"{root}/{name}" for name in self._adapter(path)}, "expires": str(expires)})

    def _file(self, path: str) -> Response:
        where, _, name = path.removeprefix(_FILES).rpartition("/")
        if f"tinker://{where}" not in self.checkpoints:
            return refusal(404, "Not Found")
        files = self._adapter(f"tinker://{where}")
        if name == "archive.tar.gz":
            files[name] = _archive(files)
        return Response(200, files[name], {"content-type": "application/octet-stream"})

    def _adapter(self, path: str) -> dict[str, bytes]:
        """The files of an adapter; each tensor is filled with the number of steps that made it."""
        kept = self.checkpoints[path]
        config = {
            "base_model_name_or_path": kept.model.base_model, "peft_type": "LORA", "r": _RANK, "lora_alpha": 32,
            "target_modules": None, "task_type": "CAUSAL_LM",
        }  # fmt: skip
        layer = "base_model.model.model.layers.0.self_attn.q_proj"
        tensors = {
            f"{layer}.lora_A.weight": np.full((_RANK, _HIDDEN), len(kept.steps), np.float32),
            f"{layer}.lora_B.weight": np.full((_HIDDEN, _RANK), len(kept.steps), np.float32),
        }
        return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}


def digest(datum: dict[str, Any]) -> str:
    """A short name for an example: its tokens, its targets and their weights."""
    tokens = [token for chunk in datum["model_input"]["chunks"] for token in chunk["tokens"]]
    inputs = datum["loss_fn_inputs"]
    numbers = [*tokens, -1, *inputs["target_tokens"]["data"], -1, *inputs.get("weights", {"data": []})["data"]]
    return hashlib.sha256(struct.pack(f"{len(numbers)}d", *numbers)).hexdigest()[:12]


def _cursor(total: int) -> dict[str, int]:
    return {"offset": 0, "limit": max(total, 1), "total_count": total}


def _archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _decode(body: bytes) -> dict[str, Any]:
    """A `forward_backward` in protobuf as it would be in JSON."""
    from tinker.proto import tinker_public_pb2 as protocol

    types = {protocol.DTYPE_INT64: np.int64, protocol.DTYPE_FLOAT32: np.float32}
    message = protocol.ForwardBackwardRequest()
    message.ParseFromString(body)
    data = []
    for datum in message.data:
        chunks = [{"tokens": np.frombuffer(c.encoded_text.tokens, np.int32).tolist()} for c in datum.model_input]
        inputs = {}
        for name, tensor in datum.loss_fn_inputs.items():
            if tensor.HasField("sparse_csr"):
                csr = tensor.sparse_csr
                dense = np.zeros(tensor.shape, types[tensor.dtype])
                starts = np.frombuffer(csr.crow_indices, np.int64).tolist()
                rows = [row for row, (one, next_) in enumerate(itertools.pairwise(starts)) for _ in range(one, next_)]
                dense[rows, np.frombuffer(csr.col_indices, np.int64)] = np.frombuffer(csr.values, types[tensor.dtype])
            else:
                dense = np.frombuffer(tensor.dense, types[tensor.dtype])
            inputs[name] = {"data": dense.ravel().tolist()}
        data.append({"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs})
    return {
        "model_id": message.model_id, "seq_id": message.seq_id, "forward_only": message.forward_only,
        "forward_backward_input": {
            "data": data, "loss_fn": message.loss_fn,
            "loss_fn_config": {key: one.number for key, one in message.loss_fn_config_v2.items()} or None,
        },
    }  # fmt: skip


def _encode(result: dict[str, Any]) -> bytes:
    """The result of a `forward_backward` or of sampling in protobuf."""
    from tinker.proto import tinker_public_pb2 as protocol

    if "sequences" in result:
        sample = protocol.SampleResponse()
        for sequence in result["sequences"]:
            stopped = sequence["stop_reason"] == "stop"
            sample.sequences.add(
                stop_reason=protocol.STOP_REASON_STOP if stopped else protocol.STOP_REASON_LENGTH,
                tokens=np.asarray(sequence["tokens"], np.int32).tobytes(),
                logprobs=np.asarray(sequence["logprobs"], np.float32).tobytes(),
            )
        if (scored := result["prompt_logprobs"]) is not None:
            numbers = [math.nan if logprob is None else logprob for logprob in scored]
            sample.prompt_logprobs = np.asarray(numbers, np.float32).tobytes()
        return bytes(sample.SerializeToString())
    parts = [np.asarray(output["logprobs"]["data"], np.float32) for output in result["loss_fn_outputs"]]
    output = protocol.ForwardBackwardOutput(loss_fn_output_type=result["loss_fn_output_type"])
    record = output.loss_fn_outputs.add(num_datums=len(parts))
    tensor = record.fields["logprobs"]
    tensor.dtype = protocol.DTYPE_FLOAT32
    tensor.data = b"".join(part.tobytes() for part in parts)
    tensor.offsets = np.cumsum([0, *[part.nbytes for part in parts]], dtype=np.int64).tobytes()
    return bytes(output.SerializeToString())
