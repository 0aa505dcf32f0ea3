"""A certificate that is replaced: who connects sees the new one, whatever its key is."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from trustme import KeyType

from dropforge.domain.errors import BadInput
from dropforge.serving.tls import Certificate

AUTHORITY = trustme.CA()
SWAPS = [(KeyType.ECDSA, KeyType.RSA), (KeyType.RSA, KeyType.ECDSA), (KeyType.ECDSA, KeyType.ECDSA)]


def write(folder: Path, kind: KeyType) -> bytes:
    """A pair as files; its certificate."""
    made = AUTHORITY.issue_cert("localhost", key_type=kind)
    (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    (folder / "key.pem").write_bytes(made.private_key_pem.bytes())
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


def shake_hands(
    listener: ssl.SSLContext, *, name: str | None = "localhost", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLObject:
    """The client's end of a new connection that offers both protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = name is not None
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, newest
    context.set_alpn_protocols(["h2", "http/1.1"])
    AUTHORITY.configure_trust(context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(back, there, server_hostname=name)
    server = listener.wrap_bio(there, back, server_side=True)
    for end in (client, server, client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("name", ["localhost", None])
@pytest.mark.parametrize(("before", "after"), SWAPS)
def test_who_connects_sees_what_was_read_last(
    tmp_path: Path, before: KeyType, after: KeyType, name: str | None, newest: ssl.TLSVersion
) -> None:
    first = write(tmp_path, before)
    certificate = Certificate(tmp_path / "chain.pem", tmp_path / "key.pem")
    listeners = {protocol: certificate.context(protocol) for protocol in ("http/1.1", "h2")}
    for seen in (first, write(tmp_path, after)):
        for protocol, listener in listeners.items():
            connection = shake_hands(listener, name=name, newest=newest)
            assert connection.getpeercert(binary_form=True) == seen
            assert connection.selected_alpn_protocol() == protocol
        certificate.reload()


@pytest.mark.parametrize("hurt", ["chain.pem", "key.pem"])
def test_half_a_pair_changes_nothing_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hurt: str
) -> None:
    first = write(tmp_path, KeyType.ECDSA)
    certificate = Certificate(tmp_path / "chain.pem", tmp_path / "key.pem")
    listener = certificate.context("http/1.1")
    old = (tmp_path / hurt).read_bytes()
    write(tmp_path, KeyType.RSA)
    (tmp_path / hurt).write_bytes(old)
    certificate.reload()
    assert shake_hands(listener).getpeercert(binary_form=True) == first
    assert "the certificate was not replaced: --tls-cert" in caplog.text
    with pytest.raises(BadInput, match="cannot be used"):
        certificate.context("h2")
