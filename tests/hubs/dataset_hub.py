"""A Hub on the loopback: as much of its interface as `datasets` needs to stream the files of a dataset."""

import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback import Loopback

COMMIT = "0123456789abcdef0123456789abcdef01234567"

_API = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/[^/]+(?:/(?P<path>.+))?)?")
_FILE = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")


class Hub(Loopback):
    """Serves dataset repositories, each a mapping from paths to contents, until the block ends."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.authorizations: set[str | None] = set()
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.authorizations.add(self.headers.get("Authorization"))
        if not (found := _API.fullmatch(path) or _FILE.fullmatch(path)):
            return self._send(404)
        files = self.hub.repositories.get(found["repo"])
        if files is None:
            return self._send(404, error="RepoNotFound")
        if found.re is _FILE:
            return self._send_file(files, found["path"])
        if found["what"] == "tree":
            return self._send_json(_tree(files, found["path"]))
        return self._send_json(
            {"id": found["repo"], "sha": COMMIT, "tags": [], "siblings": [{"rfilename": path} for path in files]}
        )

    do_HEAD = do_GET

    def _send_file(self, files: Mapping[str, bytes], path: str) -> None:
        if path not in files:
            return self._send(404, error="EntryNotFound")
        content = files[path]
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            part = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": _etag(content)}
            return self._send(206, content[first : last + 1], **part)
        return self._send(200, content, ETag=_etag(content))

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes = b"", error: str | None = None, **headers: str) -> None:
        self.send_response(code)
        if error:
            headers |= {"X-Error-Code": error, "X-Error-Message": error}
        if error != "RepoNotFound":
            headers["X-Repo-Commit"] = COMMIT
        for name, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha1(content).hexdigest()}"'


def _tree(files: Mapping[str, bytes], folder: str | None) -> list[dict[str, Any]]:
    """Every file and folder at or below `folder`, as the Hub lists them."""
    prefix = f"{folder}/" if folder else ""
    paths = [path for path in files if path.startswith(prefix)]
    folders = {"/".join(parts[:n]) for parts in (path.split("/") for path in paths) for n in range(1, len(parts))}
    return [
        *({"type": "directory", "oid": COMMIT, "size": 0, "path": path} for path in sorted(folders)),
        *({"type": "file", "oid": _etag(files[p])[1:-1], "size": len(files[p]), "path": p} for p in paths),
    ]
