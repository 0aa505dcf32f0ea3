"""Storage events as values: what Microsoft's samples show, and what the service sends besides."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.arrivals import Heard, Seen, heard
from dropforge.domain.errors import BadInput
from dropforge.domain.storage_events import StorageKind, is_newer, newest, parse

PAYLOADS = Path(__file__).parent.parent / "e2e" / "payloads"
URL = "https://acc.blob.core.windows.net/drops/a.csv"


def sample(name: str) -> dict[str, Any]:
    """The first event of a published sample."""
    found = json.loads((PAYLOADS / f"{name}.json").read_text())
    event = found[0] if isinstance(found, list) else found
    assert isinstance(event, dict)
    return event


def created(**data: Any) -> dict[str, Any]:
    """A BlobCreated event with other data; None takes a key away."""
    event = sample("eventgrid.blob_created.putblocklist")
    event["data"] = {key: value for key, value in (event["data"] | data).items() if value is not None}
    return event


# ------------------------------------------------------------------------------------------------ the samples
@pytest.mark.parametrize("envelope", ["eventgrid", "cloudevents"])
def test_an_upload_in_blocks_is_told_in_either_envelope(envelope: str) -> None:
    event = parse(sample(f"{envelope}.blob_created.putblocklist"))
    assert (event.kind, event.api, event.is_whole) == (StorageKind.CREATED, "PutBlockList", True)
    assert event.url == "https://my-storage-account.blob.core.windows.net/testcontainer/new-file.txt"
    assert event.subject == ("test-container", "new-file.txt")
    assert (event.etag, event.size_bytes) == ("0x8D4BCC2E4835CD0", 524288)
    assert event.sequencer == "00000000000004420000000000028963"
    assert (event.cause.id, event.cause.door, event.cause.hops) == (
        "831e1650-001e-001b-66ab-eeb76e069631",
        "storage",
        0,
    )


def test_a_commit_over_sftp_is_whole_although_its_sample_says_no_bytes() -> None:
    event = parse(sample("cloudevents.blob_created.sftp_commit"))
    assert (event.size_bytes, event.is_whole) == (0, True)


def test_a_name_made_in_a_data_lake_is_no_file_yet() -> None:
    event = parse(sample("eventgrid.blob_created.adls_createfile"))
    assert (event.url.split(".")[1], event.is_whole) == ("dfs", False)


def test_the_sample_of_a_dead_letter_is_an_event_alone_with_a_bare_etag() -> None:
    event = parse(sample("eventgrid.deadletter.blob_created"))
    assert (event.etag, event.is_whole) == ("0x8D83FACDC0C3402", False)


def test_a_deleted_blob_has_no_etag_and_no_size() -> None:
    event = parse(sample("eventgrid.blob_deleted"))
    assert (event.kind, event.etag, event.size_bytes) == (StorageKind.DELETED, "", None)


def test_a_renamed_directory_has_two_urls_and_no_url() -> None:
    event = parse(sample("eventgrid.directory_renamed.adls"))
    assert event.kind is StorageKind.DIRECTORY_RENAMED
    assert event.url.endswith("/my-file-system/my-renamed-directory")
    assert event.source_url.endswith("/my-file-system/my-original-directory")


# ------------------------------------------------------------------------------------------------ the traps
@pytest.mark.parametrize(
    ("api", "size", "whole"),
    [
        ("PutBlob", 1, True),
        ("PutBlob", "1", True),
        ("PutBlob", None, True),
        ("PutBlob", 0, False),
        ("PutBlockList", 0, True),
        ("CopyBlob", 0, True),
        ("CopyBlob", 9, True),
        ("CreateFile", 0, False),
        ("FlushWithClose", 0, True),
        ("FlushWithClose", 9, True),
        ("SftpCreate", 0, False),
        ("SftpCreate", 9, False),
        ("SftpCommit", 9, True),
        ("SomethingNew", 9, True),
        ("SomethingNew", 0, False),
        (None, 9, True),
    ],
)
def test_which_calls_end_an_upload(api: str | None, size: object, whole: bool) -> None:
    assert parse(created(api=api, contentLength=size)).is_whole is whole


@pytest.mark.parametrize("etag", ['"0x8D4BCC2E4835CD0"', "0x8D4BCC2E4835CD0", 'W/"0x8D4BCC2E4835CD0"'])
def test_an_etag_is_the_same_with_and_without_quotes(etag: str) -> None:
    assert parse(created(eTag=etag)).etag == "0x8D4BCC2E4835CD0"


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        ("Microsoft.Storage.BlobTierChanged", StorageKind.IGNORED),
        ("Microsoft.Storage.DirectoryCreated", StorageKind.IGNORED),
        ("Microsoft.Storage.AsyncOperationInitiated", StorageKind.IGNORED),
        ("Microsoft.Storage.BlobInventoryPolicyCompleted", StorageKind.IGNORED),
        ("Microsoft.Storage.DirectoryDeleted", StorageKind.DIRECTORY_DELETED),
        ("Microsoft.Storage.SomethingOfNextYear", StorageKind.UNKNOWN),
        ("BlobCreated", StorageKind.UNKNOWN),
        ("Microsoft.EventGrid.SubscriptionValidationEvent", StorageKind.UNKNOWN),
    ],
)
def test_every_type_has_a_kind(type_: str, kind: StorageKind) -> None:
    assert parse({**created(), "eventType": type_}).kind is kind


def test_an_event_of_a_kind_that_is_not_acted_on_may_hold_anything() -> None:
    assert parse({"id": "1", "eventType": "Microsoft.Storage.BlobTierChanged"}).kind is StorageKind.IGNORED
    assert parse({"id": "1", "eventType": "Contoso.Made", "data": [1]}).kind is StorageKind.UNKNOWN


def test_hops_and_causation_come_from_the_extensions_of_a_cloud_event() -> None:
    event = sample("cloudevents.blob_created.putblocklist")
    assert parse({**event, "hops": "3"}).cause.hops == 3
    assert parse({**event, "causationid": "e1.4"}).cause.hops == 4


def test_a_subject_that_names_no_blob_says_nothing() -> None:
    for subject in ("", None, 7, "/blobServices/default/containers/drops", "somewhere/else"):
        assert parse({**created(), "subject": subject}).subject is None


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        "text",
        {},
        {"id": "1"},
        {"eventType": "Microsoft.Storage.BlobCreated"},
        {**created(), "id": ""},
        {**created(), "id": 7},
        {**created(), "eventType": ["x"]},
        {**created(), "data": None},
        {**created(), "data": []},
        {**created(), "hops": "many"},
        created(url=""),
        created(url=7),
        created(url="https://x/" + "a" * 5000),
        created(url="https://acc.blob.core.windows.net/drops/\ud800"),
        created(eTag=7),
        created(eTag='""'),
        created(contentLength=-1),
        created(contentLength=1.5),
        created(contentLength=True),
        created(contentLength="many"),
        created(contentLength=10**30),
        created(sequencer=["1"]),
        created(sequencer="not hex!"),
        {**sample("eventgrid.directory_renamed.adls"), "data": {"destinationUrl": URL}},
    ],
)
def test_an_event_that_makes_no_sense_is_refused_with_a_reason(told: object) -> None:
    with pytest.raises(BadInput) as found:
        parse(told)
    assert len(found.value.message) > 20


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(["id", "eventType", "subject", "data", "hops"]), inner=st.booleans(), value=ANYTHING)
def test_nothing_that_can_stand_in_an_event_raises_anything_else(key: str, inner: bool, value: object) -> None:
    event = created()
    if inner:
        event["data"] |= dict.fromkeys(("url", "eTag", "contentLength", "sequencer", "api"), value)
    else:
        event[key] = value
    with contextlib.suppress(BadInput):
        parse(event)


# ------------------------------------------------------------------------------------------------ which is newer
def test_sequencers_of_different_lengths_compare_padded_on_the_left() -> None:
    short, long = "00000000000004420000000000028963", "00000000000000000000000000015508000000000005101c"
    assert is_newer(long, short) is True
    assert is_newer(short, long) is False
    assert is_newer("0000ff", "FF") is None
    assert is_newer("ff", None) is None
    assert (newest(None, None), newest("1", None), newest(None, "1"), newest("2", "10")) == (None, "1", "1", "10")


@given(st.integers(0, 2**190), st.integers(0, 2**190), st.sampled_from([32, 40, 48]), st.sampled_from([32, 48]))
def test_sequencers_compare_as_the_numbers_they_are(one: int, other: int, width: int, other_width: int) -> None:
    found = is_newer(f"{one:0{width}x}", f"{other:0{other_width}X}")
    assert found is (None if one == other else one > other)


KNOWN = Seen("id", URL, "0x1", "10")


@pytest.mark.parametrize(
    ("known", "etag", "sequencer", "means"),
    [
        (None, "0x1", None, Heard.NEW),
        (KNOWN, "0x1", "10", Heard.KNOWN),
        (KNOWN, "0x1", None, Heard.KNOWN),
        (KNOWN, "0x2", "11", Heard.NEW),
        (KNOWN, "0x2", "0f", Heard.DOUBTFUL),
        (KNOWN, "0x2", "10", Heard.DOUBTFUL),
        (KNOWN, "0x2", None, Heard.DOUBTFUL),
        (Seen("id", URL, "0x1"), "0x2", "11", Heard.DOUBTFUL),
        (Seen("id", URL, "0x1", "10", gone_at="now"), "0x1", "10", Heard.DOUBTFUL),  # type: ignore[arg-type]
        (Seen("id", URL, "0x1", "10", gone_at="now"), "0x2", "11", Heard.NEW),  # type: ignore[arg-type]
        (Seen(None, URL, None, "10", gone_at="now"), "0x1", "09", Heard.DOUBTFUL),  # type: ignore[arg-type]
    ],
)
def test_what_an_event_adds_to_what_is_known(
    known: Seen | None, etag: str, sequencer: str | None, means: Heard
) -> None:
    assert heard(known, URL, etag, sequencer) is means
