"""A model hub on this machine: the part of its HTTP interface that creates, pushes to and reads repositories.

    with hub_stand_in() as hub:
        model.push_to_hub("someone/model")
        hub.files("someone/model")["config.json"]

Within the context this process's hub client talks to the stand-in, with a token; `hub.environment` makes a subprocess
do so. Every file is uploaded inside its commit, none through large-file storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

USER = "someone"
KINDS = r"/api/(?:models|datasets|spaces)/([^/]+/[^/]+)"


class Hub:
    """What the stand-in holds.

    Attributes:
        url: where it listens.
        commits: (repository, message) of every commit, in order.
        requests: "METHOD path" of every request, in order.
        failing: requests whose "METHOD path" contains this text are forbidden (status 403); None for none.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.commits: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.failing: str | None = None
        self.private: dict[str, bool] = {}
        self.repositories: dict[str, dict[str, bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a subprocess talk to the stand-in."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_stand_in", "NO_PROXY": "127.0.0.1"}

    def files(self, repository: str) -> dict[str, bytes]:
        """Contents by path of a repository, "owner/name"; KeyError if it was never created."""
        return dict(self.repositories[repository])


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Run a hub on this machine and make this process's hub client use it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        patch.setattr("transformers.utils.hub._hf_api", None)
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self._answer("POST")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        self.hub.requests.append(f"{method} {path}")
        if self.hub.failing is not None and self.hub.failing in f"{method} {path}":
            return self._send(403, {"error": "the stand-in was asked to refuse"})
        for route, answer in _ROUTES:
            match = re.fullmatch(route, f"{method} {path}")
            if match:
                return answer(self, body, *match.groups())
        return self._send(404, {"error": f"the stand-in knows no {method} {path}"})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _who(self, _: bytes) -> None:
        self._send(200, {"type": "user", "name": USER, "orgs": []})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        self.hub.repositories[name] = {}
        self.hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        return self._send(200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _valid(self, _: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def _preupload(self, body: bytes, name: str) -> None:
        asked = json.loads(body)["files"]
        modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
        self._send(200, {"files": modes} if name in self.hub.repositories else {})

    def _commit(self, body: bytes, name: str) -> None:
        files = self.hub.repositories[name]
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                self.hub.commits.append((name, value["summary"]))
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                files.pop(value["path"])
            elif operation["key"] == "deletedFolder":
                for path in [path for path in files if path.startswith(value["path"])]:
                    del files[path]
        commit = self._revision()
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _branch(self, _: bytes, name: str) -> None:
        self._send(200 if name in self.hub.repositories else 404, {})

    def _info(self, _: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            return self._send(404, {"error": "no such repository"})
        files = self.hub.repositories[name]
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "modelId": name, "sha": self._revision(), "private": self.hub.private[name], "tags": []}
        return self._send(200, about | {"siblings": siblings, "gated": False, "downloads": 0, "likes": 0})

    def _tree(self, _: bytes, name: str) -> None:
        if name not in self.hub.repositories:
            return self._send(404, {"error": "no such repository"})
        files = self.hub.repositories[name].items()
        entries = [{"type": "file", "path": path, "size": len(data), "oid": _digest(data)} for path, data in files]
        return self._send(200, entries)

    def _file(self, _: bytes, name: str, path: str) -> None:
        data = self.hub.repositories.get(name, {}).get(path)
        if data is None:
            return self._send(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        return self._send(200, data, {"X-Repo-Commit": self._revision(), "ETag": f'"{_digest(data)}"'})

    def _revision(self) -> str:
        return _digest(str(len(self.hub.commits)).encode())


_ROUTES = [
    (r"GET /api/whoami-v2", _Handler._who),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._valid),
    (rf"POST {KINDS}/preupload/.+", _Handler._preupload),
    (rf"POST {KINDS}/commit/.+", _Handler._commit),
    (rf"POST {KINDS}/branch/.+", _Handler._branch),
    (rf"GET {KINDS}/tree/.+", _Handler._tree),
    (rf"GET {KINDS}(?:/revision/.+)?", _Handler._info),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/[^/]+/(.+)", _Handler._file),
]


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
