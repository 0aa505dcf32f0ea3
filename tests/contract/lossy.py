"""A proxy before Azurite that loses requests and answers as it is told to."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import urlsplit


@dataclass
class Lossy:
    """`fates`: what becomes of the writes to come, first to last; then each is answered.

    `lose`: it is done and not answered. `drop`: it is not done. `cut`: it is done, and half of the answer comes. `fail`: it
    is done, and answered with 503.
    """

    url: str
    server: str
    fates: list[str] = field(default_factory=list)
    # Called when an answer was lost, before anything else happens.
    then: Callable[[], object] = lambda: None
    # Method, path and size of the body of each request.
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def fate(self, method: str, path: str, size: int) -> str:
        with self.lock:
            self.requests.append((method, path, size))
            return self.fates.pop(0) if method in ("POST", "PUT", "DELETE") and self.fates else "answer"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100
    lossy: Lossy


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        lossy = self.server.lossy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = lossy.fate(self.command, self.path, len(body))
        if fate == "drop":
            return self._hang_up()
        to = http.client.HTTPConnection(urlsplit(lossy.server).netloc, timeout=30)
        try:
            to.request(self.command, self.path, body, dict(self.headers.items()))
            answer = to.getresponse()
            said = answer.read()
        finally:
            to.close()
        if fate == "lose":
            lossy.then()
            return self._hang_up()
        if fate == "fail":
            lossy.then()
        self.send_response_only(503 if fate == "fail" else answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "keep-alive"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(said)))
        self.end_headers()
        self.wfile.write(said[: len(said) // 2] if fate == "cut" else said)
        if fate == "cut":
            lossy.then()
            self._hang_up()
        return None

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815  the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        return None


@contextmanager
def lossy(server: str) -> Iterator[Lossy]:
    """A proxy before that server."""
    with _Server(("127.0.0.1", 0), _Handler) as proxy:
        proxy.lossy = Lossy(f"http://127.0.0.1:{proxy.server_port}", server)
        thread = Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield proxy.lossy
        finally:
            proxy.shutdown()
            thread.join()
