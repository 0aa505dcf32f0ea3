"""Several processes on one port, and TLS, over real sockets."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from dropforge.domain.endpoints import ReplicaState
from tests.e2e.test_serving import KEY, WAIT_SECONDS, WITH_KEY, Replica, eventually, one_row
from tests.unit.serving import onnx_models
from tests.unit.serving.entra import AUDIENCE, TENANT, Issuer, published
from tests.unit.serving.onnx_models import deployment

Start = Callable[..., Replica]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Replica] = []

    def starter(*options: str) -> Replica:
        started.append(Replica(tmp_path / "serving", *options))
        return started[-1]

    yield starter
    for replica in started:
        if replica.process.poll() is None:
            replica.stop()


def children(of: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def reports(replica: Replica, revision: int) -> dict[str, ReplicaState] | None:
    found = {state.replica: state for state in replica.serving.observe("flights") if state.revision == revision}
    return found if len(found) == 2 else None


class Asking:
    """Asks one question after the other on a connection of its own, and notes the statuses."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.statuses: list[int] = []
        self.broken = 0

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                self.statuses.append(self._replica.infer(one_row(1, 2, 3)).status)
            except (OSError, http.client.HTTPException):
                self.broken += 1

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_killed_worker_comes_back_with_the_desired_state_while_the_others_answer(
    start: Start, tmp_path: Path
) -> None:
    replica = start("--workers", "2")
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(1), 1))
    before = eventually(lambda: reports(replica, 1))
    assert set(before) == {"r1-0", "r1-1"}
    first = children(replica.process.pid)
    with Asking(replica) as asking:
        eventually(lambda: len(asking.statuses) > 20)
        os.kill(first[0], signal.SIGKILL)
        replica.publish(2, deployment(tmp_path, onnx_models.scaled(2), 2))
        after = eventually(lambda: reports(replica, 2))
        known = len(asking.statuses)
        eventually(lambda: len(asking.statuses) > known + 20)
    began = [name for name in after if after[name].started_at != before[name].started_at]
    assert len(began) == 1
    # What the dead one had taken on is lost; whoever asks meets one that answers.
    assert set(asking.statuses) == {200} and asking.broken <= 2
    assert len(set(children(replica.process.pid)) - set(first)) == 1
    workers = children(replica.process.pid)
    assert replica.stop() == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_workers_do_not_outlive_the_one_above_them(start: Start) -> None:
    replica = start("--workers", "2")
    workers = eventually(lambda: found if len(found := children(replica.process.pid)) == 2 else None)
    replica.stop(signal.SIGKILL)
    eventually(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_sighup_ends_nobody_where_there_is_no_certificate(start: Start, tmp_path: Path) -> None:
    replica = start("--workers", "2")
    replica.publish(1, deployment(tmp_path, onnx_models.scaled(1), 1))
    eventually(lambda: reports(replica, 1))
    workers = children(replica.process.pid)
    # As the one above them passes it on; that one last.
    for pid in (*workers, replica.process.pid):
        os.kill(pid, signal.SIGHUP)
    with Asking(replica) as asking:
        eventually(lambda: len(asking.statuses) > 20)
    assert set(asking.statuses) == {200} and not asking.broken
    assert children(replica.process.pid) == workers
    assert replica.stop() == 0


def test_settings_that_no_worker_can_start_with_end_all_of_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dropforge.serving", "--root", str(tmp_path), "--port", "0", "--no-key"]
    ended = subprocess.run(
        [*command, "--workers", "2", "--tls-cert", "none.pem", "--tls-key", "none.pem"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert ended.returncode == 2
    assert "--tls-cert none.pem and --tls-key none.pem cannot be used" in ended.stderr


# ------------------------------------------------------------------------------------------------ TLS
def _write(authority: trustme.CA, folder: Path, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
    made = authority.issue_cert("127.0.0.1", key_type=kind)
    (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    (folder / "key.pem").write_bytes(made.private_key_pem.bytes())


def _context(authority: trustme.CA, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = newest
    authority.configure_trust(context)
    return context


def _ask(port: int, context: ssl.SSLContext) -> tuple[int, bytes]:
    """The status of a question, and the certificate of who answered it."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=WAIT_SECONDS, context=context)
    try:
        connection.request("GET", "/v2", headers=WITH_KEY)
        found = connection.sock.getpeercert(binary_form=True)
        assert found is not None
        return connection.getresponse().status, found
    finally:
        connection.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_certificate_is_replaced_while_it_serves_and_a_broken_one_is_not_taken(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    _write(authority, tmp_path)
    replica = start("--tls-cert", str(tmp_path / "chain.pem"), "--tls-key", str(tmp_path / "key.pem"))
    status, first = _ask(replica.port, _context(authority))
    assert status == 200
    assert _ask(replica.port, _context(authority, ssl.TLSVersion.TLSv1_2))[0] == 200
    with pytest.raises(ssl.SSLError):
        _ask(replica.port, _context(authority, ssl.TLSVersion.TLSv1_1))
    with pytest.raises(ssl.SSLCertVerificationError):
        _ask(replica.port, ssl.create_default_context())

    (tmp_path / "key.pem").write_text("no key")
    replica.process.send_signal(signal.SIGHUP)
    eventually(lambda: replica.logged("(certificate was not replaced)"))
    assert _ask(replica.port, _context(authority)) == (200, first)

    _write(authority, tmp_path)
    replica.process.send_signal(signal.SIGHUP)
    eventually(lambda: replica.logged("(certificate of .* is in use)"))
    status, second = _ask(replica.port, _context(authority))
    assert status == 200 and second != first
    assert replica.stop() == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_certificate_with_another_type_of_key_takes_its_place_on_both_ports(start: Start, tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    _write(first, tmp_path)
    replica = start(
        *("--tls-cert", str(tmp_path / "chain.pem"), "--tls-key", str(tmp_path / "key.pem"), "--grpc-port", "0")
    )
    port = eventually(lambda: replica.logged(r"listens on grpc://\S+:(\d+)"))
    assert _ask(replica.port, _context(first))[0] == 200
    assert _by_grpc(port, KEY, first) == "OK"
    _write(second, tmp_path, trustme.KeyType.RSA)
    replica.process.send_signal(signal.SIGHUP)
    eventually(lambda: replica.logged("(certificate of .* is in use)"))
    assert _ask(replica.port, _context(second))[0] == 200
    assert _by_grpc(port, KEY, second) == "OK"
    with pytest.raises(ssl.SSLCertVerificationError):
        _ask(replica.port, _context(first))
    with pytest.raises(ssl.SSLError):
        _ask(replica.port, _context(second, ssl.TLSVersion.TLSv1_1))
    assert replica.stop() == 0


def test_a_certificate_is_replaced_while_a_worker_still_loads(tmp_path: Path) -> None:
    _write(trustme.CA(), tmp_path)
    # A pipe: who reads what is desired waits until somebody has written it.
    desired = tmp_path / "serving" / "desired" / "flights.json"
    desired.parent.mkdir(parents=True)
    os.mkfifo(desired)
    command = [sys.executable, "-m", "dropforge.serving", "--root", str(tmp_path / "serving"), "--port", "0"]
    command += ["--no-key", "--share-port"]
    command += ["--tls-cert", str(tmp_path / "chain.pem"), "--tls-key", str(tmp_path / "key.pem")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
        try:
            with desired.open("wb"):
                worker.send_signal(signal.SIGHUP)
                assert _says(worker, "is in use", never="listens on")
                desired.unlink()
            assert _says(worker, "listens on https")
        finally:
            worker.terminate()
    assert worker.returncode == 0


def _says(process: subprocess.Popen[str], words: str, never: str = "no such words") -> bool:
    """Whether it does before its end."""
    assert process.stderr is not None
    for line in process.stderr:
        assert never not in line
        if words in line:
            return True
    return False


# ------------------------------------------------------------------------------------------------ tokens
def test_a_server_takes_the_tokens_of_its_tenant_and_never_logs_one(start: Start, tmp_path: Path) -> None:
    with published(Issuer("k1")) as issuer:
        given = ("--entra-tenant", TENANT, "--entra-audience", AUDIENCE, "--entra-authority", issuer.authority)
        replica = start(*given, "--grpc-port", "0")
        replica.publish(1, deployment(tmp_path, onnx_models.scaled(2), 1))
        replica.reached(1)
        tokens = [issuer.token(), issuer.token("stranger"), issuer.token(aud="x")]
        asked = [
            replica.ask("POST", "/v2/models/flights/infer", one_row(1, 2, 3), {"Authorization": f"Bearer {token}"})
            for token in tokens
        ]
        assert [each.status for each in asked] == [200, 401, 401]
        assert asked[1].headers["www-authenticate"] == "Bearer"
        assert replica.infer(one_row(1, 2, 3)).status == 200
        port = eventually(lambda: replica.logged(r"listens on grpc://\S+:(\d+)"))
        assert [_by_grpc(port, token) for token in tokens] == ["OK", "UNAUTHENTICATED", "UNAUTHENTICATED"]
        assert replica.stop() == 0
    said = "".join(replica.log) + "".join(each.body.decode() for each in asked)
    assert not any(part in said for token in tokens for part in token.split("."))


def _by_grpc(port: str, token: str, authority: trustme.CA | None = None) -> str:
    """The status of a question over gRPC, with TLS when an authority is trusted."""
    address, alone = f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.insecure_channel(address)
        if authority is None
        else grpc.secure_channel(address, grpc.ssl_channel_credentials(authority.cert_pem.bytes()), alone)
    ) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        try:
            ask(b"", timeout=WAIT_SECONDS, metadata=[("authorization", f"Bearer {token}")])
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
