"""The server of a board: this machine only, read only, behind a token.

It listens on the loopback address. Other programs of this machine, and pages of other sites in the same browser, are
kept out: the address has a secret token, the `Host` header must be the server's own (a name that an attacker lets point
to 127.0.0.1 is refused), nothing is answered to other origins, and the page may load and run nothing from elsewhere.
There is one request that carries a body, the hashes of what the page has; it changes nothing.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from wishbone.board.parts import board_parts, digest, shell
from wishbone.board.runs import Runs
from wishbone.errors import RequestError
from wishbone.report.html import STYLE

HERE = Path(__file__).parent
ADDRESS = "127.0.0.1"
PORT = 8735
TRIED = 20
"""Ports that are tried, the first free one is taken."""
LONGEST_BODY = 2**18
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FINISHED = frozenset({"done", "failed", "stopped"})


class BoardServer(ThreadingHTTPServer):
    """Serves a board.

    Args:
        runs: what it shows.
        token: secret part of the address.
        port: to listen on; None: the first free one from `PORT` on.

    Raises:
        RequestError: the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, runs: Runs, token: str, port: int | None = None) -> None:
        self.runs, self.token = runs, token
        for one in range(PORT, PORT + TRIED) if port is None else (port,):
            try:
                super().__init__((ADDRESS, one), Handler)
                return
            except OSError as error:
                reason = error.strerror or type(error).__name__
        raise RequestError(f"--port: {one} cannot be listened on ({reason}); name a free port, or stop what uses it")

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that closed its connection."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: BoardServer
    server_version, sys_version = "wishbone", ""
    protocol_version = "HTTP/1.1"
    timeout = 30
    FILES: ClassVar[dict[str, tuple[str, str]]] = {
        "": ("text/html; charset=utf-8", "page"),
        "board.js": ("text/javascript; charset=utf-8", "board.js"),
        "board.css": ("text/css; charset=utf-8", "board.css"),
    }

    def do_GET(self) -> None:
        """Answer with the page, its script or its style."""
        name = self._allowed()
        if name is None:
            return
        if name not in self.FILES:
            self._answer(404, "text/plain", b"not found\n")
            return
        kind, file = self.FILES[name]
        self._answer(200, kind, _content(file))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer with the parts that changed; the body holds the hashes of those that the page has."""
        name = self._allowed()
        if name is None:
            return
        if name != "parts":
            self._answer(405, "text/plain", b"the board is read only\n")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST_BODY:
            self._answer(413, "text/plain", b"too long\n")
            return
        known = _hashes(self.rfile.read(int(length)))
        body = json.dumps(changes(self.server.runs, known), ensure_ascii=True).encode("ascii")
        self._answer(200, "application/json", body)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any other method
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        if self._allowed() is not None:
            self._answer(405, "text/plain", b"the board is read only\n")

    def _allowed(self) -> str | None:
        """What is asked for, below the token; None, with an answer, for whoever may not ask."""
        host, port = self.headers.get("Host", ""), self.server.server_address[1]
        origin = self.headers.get("Origin")
        own = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        if host not in own or (origin is not None and origin.removeprefix("http://") not in own):
            self._answer(403, "text/plain", b"this address is not the board's\n")
            return None
        token, slash, name = self.path.lstrip("/").partition("?")[0].partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._answer(404, "text/plain", b"the address has no valid token; `wishbone board` prints the whole one\n")
            return None
        return name

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        if status != 200:
            self.close_connection = True  # what is left of its body is not read
            self.send_header("Connection", "close")
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the address holds the token."""


def changes(runs: Runs, known: dict[str, str]) -> dict[str, Any]:
    """Return the runs, and the parts whose hash is not the known one.

    Args:
        runs: of the board.
        known: hash by `group/name` of the parts that the page has.
    """
    shown = runs.now()
    changed = []
    for group, parts in board_parts(shown).items():
        for order, (name, html) in enumerate(parts.items()):
            found = digest(html)
            if known.get(f"{group}/{name}") != found:
                changed.append({"group": group, "name": name, "hash": found, "html": html, "order": order})
    named = [{"id": run.id, "name": run.name, "live": run.record.status not in FINISHED} for run in shown]
    return {"runs": named, "changed": changed}


def lasting_token(path: Path) -> str:
    """Return the token of this user, made once and readable by nobody else, so that an address outlives the server.

    A file that cannot be used gives a token for this time only.
    """
    try:
        found = path.read_text(encoding="ascii").strip()
        if len(found) >= 20 and found.isalnum() and not path.stat().st_mode & 0o077:
            return found
    except (OSError, UnicodeDecodeError):
        pass
    token = secrets.token_hex(16)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token)
    except OSError:
        pass
    return token


@cache
def _content(name: str) -> bytes:
    if name == "page":
        return shell().encode("utf-8")
    if name == "board.css":
        return STYLE.read_bytes() + (HERE / name).read_bytes()
    return (HERE / name).read_bytes()


def _hashes(body: bytes) -> dict[str, str]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
