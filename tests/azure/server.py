"""HTTPS on loopback: reads a call, has it answered, writes the answer."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import trustme

from tests.azure.wire import Answer, Call


@cache
def _certificate() -> tuple[ssl.SSLContext, bytes]:
    """One authority for the whole process: making keys is what costs time here."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context, authority.cert_pem.bytes()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Nobody waits for a client that keeps its connection open.
    block_on_close = False
    request_queue_size = 100
    answered: Callable[[Call], Answer]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that end their connection in the middle are none of our business."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Headers and body leave together; else each answer waits for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def _any(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.answered(Call(self.command, address.path, query, headers, self._body()))
        if answer.lost:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        payload = answer.payload()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if payload:
            self.send_header("Content-Type", answer.content_type)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)
        self.wfile.flush()

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _any  # noqa: N815  the base class's names

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        return None


@contextmanager
def serving(answered: Callable[[Call], Answer]) -> Iterator[tuple[str, Path]]:
    """The URL, and a file with the certificate of the authority behind it."""
    context, authority = _certificate()
    trusted = Path(mkdtemp(prefix="control-plane-")) / "ca.pem"
    trusted.write_bytes(authority)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        # The handshake is the connection's own thread's: one slow client must not hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.answered = answered
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", trusted
        finally:
            server.shutdown()
            thread.join()
            trusted.unlink()
            trusted.parent.rmdir()
