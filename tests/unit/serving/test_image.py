"""The image of the inference server and what relies on it say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dropforge.adapters.azure.aml_online import PORT
from dropforge.serving.__main__ import parser
from dropforge.serving.provider import wanted

# Open to everybody; see tests/unit/serving/test_server.py and tests/e2e/test_serving.py.
LIVE = "/v2/health/live"
TEXT = (Path(__file__).parents[3] / "infra" / "docker" / "serving.Dockerfile").read_text()


def words(instruction: str) -> list[str]:
    """The arguments of the last instruction of that name, as JSON has them."""
    return list(json.loads(re.findall(rf"^ *{instruction} (\[.*\])$", TEXT, re.MULTILINE)[-1]))


def test_its_command_starts_the_server_where_the_endpoint_looks_for_it() -> None:
    python, module, name, *options = words("CMD")
    assert (python, module, name) == ("python", "-m", "dropforge.serving")
    assert parser().parse_args(options).port == PORT
    assert re.findall(r"^EXPOSE (\d+)$", TEXT, re.MULTILINE) == [str(PORT)]


def test_its_health_is_asked_without_a_key() -> None:
    (found,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[^']*)'", TEXT)
    assert found == (str(PORT), LIVE)


def test_it_runs_as_nobody_in_particular_and_holds_no_secret() -> None:
    assert re.findall(r"^USER (\w+)$", TEXT, re.MULTILINE) == ["dropforge"]
    assert not re.search(r"^(ARG|ENV).*(KEY|SECRET|TOKEN|PASSWORD|STORAGE)", TEXT, re.MULTILINE)


def test_it_has_what_the_options_want_that_a_container_is_told_by_its_environment() -> None:
    locked = (Path(__file__).parents[3] / "requirements" / "serve.txt").read_text()
    # DROPFORGE_SERVE_LOG_REQUESTS, DROPFORGE_STORAGE, DROPFORGE_GRPC_PORT, DROPFORGE_ENTRA_TENANT.
    for name in ("pyarrow", "azure-storage-blob", "azure-identity", "hpack", "pyjwt"):
        assert re.search(rf"^{name}(\[\w+\])?==", locked, re.MULTILINE), name


def test_every_accelerator_is_a_provider_that_the_server_knows() -> None:
    chosen = re.findall(r"^ {8}(\w+)\) gpu=", TEXT, re.MULTILINE)
    assert chosen == ["cpu", "cuda13", "cuda12"]
    for name in chosen:
        assert wanted({"DROPFORGE_SERVE_PROVIDER": name}).name == name.rstrip("123")
