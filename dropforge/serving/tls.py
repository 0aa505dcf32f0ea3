"""TLS for what listens here: a certificate that can be replaced while it serves."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from dropforge.domain.errors import BadInput

log = logging.getLogger(__name__)


class Certificate:
    """A certificate chain and its private key, both PEM files. Raises `BadInput` when they do not make a pair."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = (chain, key)
        self._contexts: list[ssl.SSLContext] = []
        self._load(_context())

    def context(self, *protocols: str) -> ssl.SSLContext:
        """For a listener that speaks these (as ALPN names them). TLS 1.2 and newer."""
        context = _context()
        context.set_alpn_protocols(list(protocols))
        self._load(context)
        self._contexts.append(context)
        return context

    def reload(self) -> None:
        """Take what the files hold now for the connections that come; what cannot be used changes nothing."""
        try:
            self._load(_context())
        except BadInput as error:
            log.error("the certificate was not replaced: %s", error.message)
            return
        for context in self._contexts:
            self._load(context)
        log.info("the certificate of %s is in use", self._files[0])

    def _load(self, context: ssl.SSLContext) -> None:
        chain, key = self._files
        try:
            # Without a passphrase: one that is wanted would be asked for at the terminal.
            context.load_cert_chain(chain, key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise BadInput(
                f"--tls-cert {chain} and --tls-key {key} cannot be used: {error}; wanted a chain and its private key without a "
                "passphrase, both in PEM"
            ) from error


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
