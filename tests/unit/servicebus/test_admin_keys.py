"""The variable with the endpoint's shared access keys: one key, several with rights, none."""

from __future__ import annotations

import pytest

from dropforge.servicebus.__main__ import _keys
from dropforge.servicebus.errors import ConfigError
from dropforge.servicebus.sas import ALL, AccessKey


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("", None),
        ("c2VjcmV0=", {"RootManageSharedAccessKey": AccessKey("c2VjcmV0=")}),
        ("a:k1", {"a": AccessKey("k1", ALL)}),
        ("a:k1  b:k2:Send,Listen", {"a": AccessKey("k1"), "b": AccessKey("k2", frozenset({"Send", "Listen"}))}),
    ],
)
def test_keys_are_read_from_the_environment(
    value: str, keys: dict[str, AccessKey] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROPFORGE_SERVICE_BUS_KEY", value)
    assert _keys(None) == keys


def test_a_key_with_an_unknown_right_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "a:secret:Fly")
    with pytest.raises(ConfigError, match="MINE") as caught:
        _keys("MINE")
    assert "secret" not in str(caught.value)
