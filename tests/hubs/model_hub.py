"""A Hub on the loopback: as much of its interface as pushing a model and loading it again need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback import Loopback

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = {
    "whoami": r"GET /api/whoami-v2",
    "yaml": r"POST /api/validate-yaml",
    "create": r"POST /api/repos/create",
    "preupload": rf"POST /api/models/{_REPO}/preupload/main",
    "commit": rf"POST /api/models/{_REPO}/commit/main",
    "xet": rf"GET /api/models/{_REPO}/xet-write-token/main",
    "tree": rf"(?:GET|HEAD) /api/models/{_REPO}/tree/[^/]+(?:/(?P<path>.+))?",
    "info": rf"(?:GET|HEAD) /api/models/{_REPO}(?:/revision/[^/]+)?",
    "batch": rf"POST /{_REPO}\.git/info/lfs/objects/batch",
    "put": r"PUT /lfs/(?P<oid>\w+)",
    "resolve": rf"(?:GET|HEAD) /{_REPO}/resolve/[^/]+/(?P<path>.+)",
}

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class File:
    """A file of a repository: its content, and its identifier."""

    content: bytes
    oid: str
    large: bool


@dataclass
class Repository:
    """A model repository."""

    private: bool
    files: dict[str, File] = field(default_factory=dict)
    # The names in each commit after the first, empty one.
    commits: list[list[str]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


@dataclass(frozen=True)
class Account:
    """Whose token it is, and whether it may write."""

    name: str
    writes: bool = True


class ModelHub(Loopback):
    """Serves model repositories, made and filled by its clients, until the block ends."""

    def __init__(self, accounts: dict[str, Account]) -> None:
        self.accounts = accounts
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        # What was asked for: the name of a route each; and the large files that came in whole.
        self.requests: list[str] = []
        self.received: list[str] = []
        # Answers to give in place of the right ones: a route's name, and a status with a message.
        self.faults: dict[str, tuple[int, str]] = {}
        # The errors of single objects in the answer of the large files' endpoint.
        self.object_error: str | None = None
        self.moved: dict[str, str] = {}
        # Called with the number of a large file that begins to arrive; False cuts the connection.
        self.on_put: Callable[[int], bool] = lambda number: True
        self.puts = 0
        self.lock = threading.Lock()
        super().__init__(_Handler)
        # Large files go to an address of their own, as those of the real Hub do.
        self.storage_url = f"http://localhost:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def _do(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        name, found = next(((n, f) for n, p in _ROUTES.items() if (f := re.fullmatch(p, asked))), ("", None))
        if found is None:
            self._body()
            return self._send(404, error="EntryNotFound")
        with self.hub.lock:
            self.hub.requests.append(name)
        if name == "put":
            return self._put(found["oid"])
        body = self._body()
        if fault := self.hub.faults.get(name):
            return self._fail(*fault)
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        account = self.hub.accounts.get(bearer)
        if bearer and account is None:
            return self._fail(401, "Invalid credentials in Authorization header")
        if "repo" not in found.groupdict():
            getattr(self, f"_{name}")(account, body)
            return None
        if moved := self.hub.moved.get(found["repo"]):
            return self._send(307, headers={"Location": self.path.replace(found["repo"], moved)})
        repository = self.hub.repositories.get(found["repo"])
        if repository is None or (repository.private and account is None):
            return self._send(404, error="RepoNotFound")
        writing = self.command == "POST" and name != "preupload"
        if writing and not (account and account.writes and account.name == found["repo"].partition("/")[0]):
            return self._fail(403, "you must use a write token to upload to a repository")
        getattr(self, f"_{name}")(repository, body, **found.groupdict())
        return None

    do_GET = do_HEAD = do_POST = do_PUT = _do

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _whoami(self, account: Account | None, body: bytes) -> None:
        if account is None:
            return self._fail(401, "Invalid username or password.")
        return self._send_json({"type": "user", "name": account.name, "auth": {"type": "access_token"}})

    def _yaml(self, account: Account | None, body: bytes) -> None:
        if "broken: [" in json.loads(body)["content"]:
            return self._send_json({"errors": [{"message": "bad indentation"}], "warnings": []}, code=400)
        return self._send_json({"errors": [], "warnings": []})

    def _create(self, account: Account | None, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if account is None:
            return self._fail(401, "Invalid username or password.")
        if name in self.hub.repositories:
            return self._fail(409, "You already created this model repo")
        if account.name != asked["organization"] or not account.writes:
            return self._fail(403, f"You don't have the rights to create a model under the namespace {name}")
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return self._send_json({"url": f"{self.hub.url}/{name}", "name": name})

    def _preupload(self, repository: Repository, body: bytes, repo: str) -> None:
        answers = []
        for asked in json.loads(body)["files"]:
            there = repository.files.get(asked["path"])
            mode = "lfs" if asked["path"].endswith(".safetensors") else "regular"
            answers.append(
                {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there.oid if there else None}
            )
        self._send_json({"files": answers})

    def _batch(self, repository: Repository, body: bytes, repo: str) -> None:
        objects: list[dict[str, Any]] = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if self.hub.object_error:
                answer["error"] = {"code": 403, "message": self.hub.object_error}
            elif asked["oid"] not in self.hub.objects:
                address = f"{self.hub.storage_url}/lfs/{asked['oid']}?Signature=gives-access"
                answer["actions"] = {"upload": {"href": address}}
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def _xet(self, repository: Repository, body: bytes, repo: str) -> None:
        """There is no such storage here; the tests turn it off but where they ask for its errors."""
        return self._send(404)

    def _put(self, oid: str) -> None:
        assert self.headers.get("Authorization") is None, "the storage is another's: no token belongs there"
        with self.hub.lock:
            self.hub.puts += 1
            number = self.hub.puts
        if not self.hub.on_put(number):
            self.rfile.read(1000)
            self.close_connection = True
            self.connection.close()
            return None
        body = self._body()
        if fault := self.hub.faults.get("put"):
            return self._fail(*fault)
        assert hashlib.sha256(body).hexdigest() == oid
        with self.hub.lock:
            self.hub.objects[oid] = body
            self.hub.received.append(oid)
        return self._send(200)

    def _commit(self, repository: Repository, body: bytes, repo: str) -> None:
        operations = [json.loads(line) for line in body.splitlines()]
        names = []
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                repository.files[value["path"]] = File(content, oid, large=False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._fail(400, f"the object {value['oid']} was not uploaded")
                repository.files[value["path"]] = File(self.hub.objects[value["oid"]], value["oid"], large=True)
            else:
                continue
            names.append(value["path"])
        repository.commits.append(sorted(names))
        url = f"{self.hub.url}/{repo}/commit/{repository.head}"
        return self._send_json({"success": True, "commitOid": repository.head, "commitUrl": url})

    def _info(self, repository: Repository, body: bytes, repo: str) -> None:
        self._send_json(
            {
                "id": repo, "modelId": repo, "sha": repository.head, "private": repository.private, "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in repository.files],
            }
        )  # fmt: skip

    def _tree(self, repository: Repository, body: bytes, repo: str, path: str | None) -> None:
        entries: list[dict[str, Any]] = [
            {"type": "file", "oid": file.oid, "size": len(file.content), "path": name}
            | ({"lfs": {"oid": file.oid, "size": len(file.content), "pointerSize": 130}} if file.large else {})
            for name, file in repository.files.items()
            if path is None or name.startswith(f"{path}/")
        ]
        if path is not None and not entries:
            return self._send(404, error="EntryNotFound")
        return self._send_json(entries)

    def _resolve(self, repository: Repository, body: bytes, repo: str, path: str) -> None:
        if (file := repository.files.get(path)) is None:
            return self._send(404, error="EntryNotFound", headers={"X-Repo-Commit": repository.head})
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": repository.head, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(file.content)), len(file.content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(file.content)}"
            return self._send(206, file.content[first : last + 1], headers=headers)
        return self._send(200, file.content, headers=headers)

    def _fail(self, code: int, message: str) -> None:
        # Some servers answer with what they were sent.
        sent = self.headers.get("Authorization")
        echo = f"{message} [{sent}]" if sent and code >= 500 else message
        self._send_json({"error": echo}, code, error_message=message)

    def _send_json(self, value: Any, code: int = 200, error_message: str | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if error_message:
            headers["X-Error-Message"] = error_message
        self._send(code, json.dumps(value).encode(), headers=headers)

    def _send(
        self,
        code: int,
        content: bytes = b"",
        error: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.send_response(code)
        codes = {"X-Error-Code": error} if error else {}
        for name, value in {"Content-Length": str(len(content)), **codes, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""
