"""TLS for what listens here: a certificate that can be replaced while it serves."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from dropforge.domain.errors import BadInput

log = logging.getLogger(__name__)


class Certificate:
    """A certificate chain and its private key, both PEM files."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = (chain, key)
        # By what its listener speaks, what the next connection is given.
        self._used: dict[str, ssl.SSLContext] = {}

    def context(self, protocol: str) -> ssl.SSLContext:
        """For a listener that speaks this (as ALPN names it). TLS 1.2 and newer. Raises `BadInput` when the files are no pair."""
        self._used[protocol] = self._read(protocol)

        # Called without a server name too, and before a certificate is chosen. A context that is loaded a second time keeps
        # what it has for other types of key, so that of the listener has no certificate, and each reading makes one anew.
        def take(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _listener: ssl.SSLContext) -> None:
            connection.context = self._used[protocol]

        listener = _context(protocol)
        listener.sni_callback = take
        return listener

    def reload(self) -> None:
        """Take what the files hold now for the connections that come; what cannot be used changes nothing."""
        try:
            # All of them before one is used.
            self._used = {protocol: self._read(protocol) for protocol in self._used}
        except BadInput as error:
            log.error("the certificate was not replaced: %s", error.message)
            return
        log.info("the certificate of %s is in use", self._files[0])

    def _read(self, protocol: str) -> ssl.SSLContext:
        chain, key = self._files
        context = _context(protocol)
        try:
            # Without a passphrase: one that is wanted would be asked for at the terminal.
            context.load_cert_chain(chain, key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise BadInput(
                f"--tls-cert {chain} and --tls-key {key} cannot be used: {error}; wanted a chain and its private key without a "
                "passphrase, both in PEM"
            ) from error
        return context


def _context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    return context
