"""What the app tells the replicas of a managed endpoint: shares of requests that are kept, and how many processes."""

from __future__ import annotations

import pytest

from dropforge import settings
from dropforge.domain.errors import BadInput
from dropforge.domain.shares import shares_of, words_of

WORKSPACE = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"


def read(**environment: str) -> settings.AzureML:
    found = settings.read({"DROPFORGE_AML_WORKSPACE": WORKSPACE, **environment}).azureml
    assert found is not None
    return found


def asked(text: str) -> str | None:
    return read(DROPFORGE_SERVE_LOG_REQUESTS=text).serve_log_requests


def test_shares_are_for_all_or_for_one() -> None:
    assert shares_of(words_of(" 0.1, flights=0.5 ,none=0")) == {"*": 0.1, "flights": 0.5, "none": 0.0}
    assert shares_of(words_of("")) == {}


@pytest.mark.parametrize("text", ["x", "1.5", "-1", "nan", "a=b", "No Name=0.5", "=0.5x"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--log-requests wants a share from 0 to 1, or <endpoint>=<share>"):
        shares_of([text])


def test_the_app_hands_the_shares_on_to_its_replicas() -> None:
    assert asked(" 0.1, flights=0.5") == "0.1,flights=0.5"
    assert asked("") is None
    with pytest.raises(BadInput, match=r"setting DROPFORGE_SERVE_LOG_REQUESTS wants a share .*, found '2'"):
        asked("0.1,2")


def test_every_core_is_used_unless_a_number_of_processes_is_set() -> None:
    assert read().serve_workers == read(DROPFORGE_SERVE_WORKERS="").serve_workers == 0
    assert read(DROPFORGE_SERVE_WORKERS="3").serve_workers == 3
    for text in ("-1", "257", "two", "1.5"):
        with pytest.raises(BadInput, match=r"setting DROPFORGE_SERVE_WORKERS is .*from 0 to 256"):
            read(DROPFORGE_SERVE_WORKERS=text)


def test_the_address_of_application_insights_is_handed_on_where_it_is_no_secret() -> None:
    address = "InstrumentationKey=1;IngestionEndpoint=https://e/"
    assert read(APPLICATIONINSIGHTS_CONNECTION_STRING=address).insights is None
    identity = {"APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "ClientId=app;Authorization=AAD"}
    assert read(APPLICATIONINSIGHTS_CONNECTION_STRING=address, **identity).insights == address
    assert read(**identity).insights is None
