"""A stand-in for Kaggle's servers; KAGGLE_API_ENVIRONMENT and http_proxy lead the real client to it."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Request:
    method: str
    name: str  # last part of the path: DownloadDataFiles, steel.zip
    headers: Message
    body: Any


class KaggleServer(ThreadingHTTPServer):
    """Answers `competitions download` with `archive`; a test changes the attributes to make it misbehave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive = b""
        self.drops = False  # the first transfer of the archive breaks off half-way
        self.fails_after_drop = False  # and the retries meet an error page
        self.replies: dict[str, tuple[int, dict[str, Any]]] = {}  # API method -> status, JSON
        self.requests: list[Request] = []

    def refuse(self, status: int, message: str) -> None:
        self.replies["DownloadDataFiles"] = (status, {"code": status, "message": message})

    def environment(self, home: str) -> dict[str, str]:
        """What makes the client talk to this server, signed in with a legacy key."""
        return {
            "HOME": home,
            "USERPROFILE": home,
            "KAGGLE_CONFIG_DIR": home,
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "tester",
            "KAGGLE_KEY": "secret",
            "http_proxy": f"http://127.0.0.1:{self.server_port}",
        }


class _Handler(BaseHTTPRequestHandler):
    server: KaggleServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = self._record(json.loads(body))
        if request.name in self.server.replies:
            self._json(*self.server.replies[request.name])
        elif request.name == "DownloadDataFiles":  # as Kaggle does: a redirect to a signed storage address
            self._head(
                302, Location=f"http://localhost/storage/{request.body['competitionName']}.zip?signed=1"
            )
        else:
            self._json(404, {"code": 404, "message": f"no reply for {request.name}"})

    def do_GET(self) -> None:
        self._record(None)
        if self.server.drops:
            self.server.drops = False
            self._archive(200, self.server.archive, sent=len(self.server.archive) // 2)
        elif self.server.fails_after_drop:
            self._json(503, {"code": 503, "message": "storage is down"})
        elif found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self._archive(206, self.server.archive[int(found[1]) :])
        else:
            self._archive(200, self.server.archive)

    def _record(self, body: Any) -> Request:
        name = urlsplit(self.path).path.rpartition("/")[2]
        self.server.requests.append(Request(self.command, name, self.headers, body))
        return self.server.requests[-1]

    def _archive(self, status: int, content: bytes, sent: int | None = None) -> None:
        self._head(status, Accept_Ranges="bytes", Content_Length=len(content), ETag='"v1"')
        self.wfile.write(content[:sent])

    def _json(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self._head(status, Content_Type="application/json", Content_Length=len(content))
        self.wfile.write(content)

    def _head(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving() -> Iterator[KaggleServer]:
    """The server on a free port, in a thread."""
    with KaggleServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
