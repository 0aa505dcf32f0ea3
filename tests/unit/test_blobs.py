"""Blob URLs taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.blobs import BlobRef, normal_etag, parse_url
from dropforge.domain.errors import BadInput


@pytest.mark.parametrize(
    "host",
    [
        "acc.blob.core.windows.net",
        "acc.dfs.core.windows.net",
        "acc.blob.core.chinacloudapi.cn",
        "acc.privatelink.blob.core.windows.net",
        "acc.z01.blob.storage.azure.net",
        "acc.blob.localhost",
        "ACC.Blob.Core.Windows.Net",
    ],
)
def test_every_host_of_an_account_names_the_same_blob(host: str) -> None:
    assert parse_url(f"https://{host}/drops/a/b%20c.csv") == BlobRef("acc", "drops", "a/b c.csv")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://acc.blob.core.windows.net/drops/a.csv",
        "https://acc.example.com/drops/a.csv",
        "https://blob/drops/a.csv",
        "https://acc.blob.core.windows.net/drops/a//b.csv",
        "https://acc.blob.core.windows.net/drops/../other/a.csv",
        "https://acc.blob.core.windows.net/drops/a%0ab.csv",
        "https://acc.blob.core.windows.net/drops/%c3.csv",
    ],
)
def test_what_is_no_blob_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="blob url"):
        parse_url(url)


@given(st.text(min_size=1, max_size=200))
def test_any_text_is_a_blob_or_refused(text: str) -> None:
    for url in (text, "https://acc.blob.core.windows.net/" + text):
        try:
            ref = parse_url(url)
        except BadInput:
            continue
        assert parse_url(ref.url) == ref


def test_etags_have_one_form() -> None:
    assert {normal_etag(etag) for etag in ('"0x1"', "0x1", ' W/"0x1" ')} == {"0x1"}
