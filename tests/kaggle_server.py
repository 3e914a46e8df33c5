"""A stand-in for Kaggle's servers; KAGGLE_API_ENVIRONMENT and http_proxy lead the real client to it."""

import json
import re
import threading
from collections.abc import Callable, Iterator
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
    """Answers the client like Kaggle; a test changes the attributes to make it misbehave.

    `archive` is what `competitions download` gets; `submissions`, `datasets` (slug -> uploaded names) and
    `kernels` (one SaveKernel body per version) are what it was sent.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive = b""
        self.drops = False  # the first transfer of the archive breaks off half-way
        self.fails_after_drop = False  # and the retries meet an error page
        self.replies: dict[str, tuple[int, dict[str, Any]]] = {}  # API method -> status, JSON
        self.hangs_up: str | None = None  # the API method that is carried out, but not answered, once
        self.gone = False  # nothing is answered
        self.stays_gone = False  # so after hanging up
        self.requests: list[Request] = []
        self.upload_status = 200
        self.uploads: dict[str, bytes] = {}  # token -> content
        self.names: dict[str, str] = {}  # token -> file name
        self.submissions: list[dict[str, Any]] = []
        self.allowed = 5  # submissions a day
        self.datasets: dict[str, list[list[str]]] = {}
        self.kernels: list[dict[str, Any]] = []
        self.runs = ["running", "complete"]  # what the status of the notebook is, one after the other

    def refuse(self, status: int, message: str, method: str = "DownloadDataFiles") -> None:
        self.replies[method] = (status, {"code": status, "message": message})

    def environment(self, home: str) -> dict[str, str]:
        """What makes the client talk to this server, signed in with a legacy key."""
        return {
            "HOME": home,
            "USERPROFILE": home,
            "KAGGLE_CONFIG_DIR": home,
            "TMPDIR": home,  # unfinished uploads are remembered there
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "tester",
            "KAGGLE_KEY": "secret",
            "http_proxy": f"http://127.0.0.1:{self.server_port}",
        }

    def start_upload(self, name: str) -> dict[str, str]:
        token = f"token{len(self.names)}"
        self.names[token] = name
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def submitted(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        ref = 1000 + len(self.submissions)
        entry = {"ref": ref, "fileName": name, "description": body.get("submissionDescription")}
        entry |= {"date": "2026-01-02T03:04:05.0000000Z", "status": "pending"}
        self.submissions.insert(0, entry)
        return {"message": "Successfully submitted to Steel", "ref": ref}


def _start_submission(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    return server.start_upload(body["fileName"])


def _start_blob(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    return server.start_upload(body["name"])


def _submit_file(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    return server.submitted(body, server.names[body["blobFileTokens"]])


def _submit_code(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    return server.submitted(body, body["fileName"])


def _list(server: KaggleServer, _: dict[str, Any]) -> dict[str, Any]:
    return {"submissions": server.submissions}


def _limits(server: KaggleServer, _: dict[str, Any]) -> dict[str, Any]:
    used = len(server.submissions)
    return {"numToday": used, "numTotal": used, "numAllowedNow": max(server.allowed - used, 0)}


def _dataset_status(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any] | None:
    return {"status": "ready"} if body["datasetSlug"] in server.datasets else None


def _dataset(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    return {"currentVersionNumber": len(server.datasets[body["datasetSlug"]])}


def _create_dataset(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    server.datasets[body["slug"]] = []
    return _new_version(server, body["slug"], body.get("files", []))


def _version_dataset(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    return _new_version(server, body["datasetSlug"], body["body"].get("files", []))


def _new_version(server: KaggleServer, slug: str, files: list[dict[str, Any]]) -> dict[str, Any]:
    server.datasets[slug].append(sorted(server.names[entry["token"]] for entry in files))
    return {"ref": f"/tester/{slug}", "url": "https://kaggle/x", "status": "ok"}


def _push(server: KaggleServer, body: dict[str, Any]) -> dict[str, Any]:
    server.kernels.append(body)
    version = len(server.kernels)
    return {"ref": f"/{body['slug']}", "url": "https://kaggle/k", "versionNumber": version}


def _run(server: KaggleServer, _: dict[str, Any]) -> dict[str, Any]:
    status = server.runs.pop(0) if len(server.runs) > 1 else server.runs[0]
    return {"status": status} | ({"failureMessage": "it broke"} if status == "error" else {})


ANSWERS: dict[str, Callable[[KaggleServer, dict[str, Any]], dict[str, Any] | None]] = {
    "StartSubmissionUpload": _start_submission,
    "StartBlobUpload": _start_blob,
    "CreateSubmission": _submit_file,
    "CreateCodeSubmission": _submit_code,
    "ListSubmissions": _list,
    "GetSubmissionLimits": _limits,
    "GetDatasetStatus": _dataset_status,
    "GetDataset": _dataset,
    "CreateDataset": _create_dataset,
    "CreateDatasetVersion": _version_dataset,
    "SaveKernel": _push,
    "GetKernelSessionStatus": _run,
}


class _Handler(BaseHTTPRequestHandler):
    server: KaggleServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = self._record(json.loads(body))
        if self.server.gone:
            self.close_connection = True
        elif request.name in self.server.replies:
            self._json(*self.server.replies[request.name])
        elif request.name == "DownloadDataFiles":  # as Kaggle does: a redirect to a signed storage address
            self._head(
                302, Location=f"http://localhost/storage/{request.body['competitionName']}.zip?signed=1"
            )
        else:
            self._answer(request)

    def do_PUT(self) -> None:
        request = self._record(None)
        self.server.uploads[request.name] = self.rfile.read(int(self.headers["Content-Length"]))
        self._json(self.server.upload_status, {})

    def _answer(self, request: Request) -> None:
        answer = ANSWERS[request.name](self.server, request.body) if request.name in ANSWERS else None
        if self.server.hangs_up == request.name:
            self.server.hangs_up, self.server.gone = None, self.server.stays_gone
            self.close_connection = True
        elif answer is None:
            self._json(404, {"code": 404, "message": f"no reply for {request.name}"})
        else:
            self._json(200, answer)

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
