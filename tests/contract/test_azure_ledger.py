"""What the ledger on Table storage promises beyond every ledger, on Azurite: lost answers, limits, what a row looks like."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.data.tables import (
    AccountSasPermissions,
    ResourceTypes,
    TableServiceClient,
    generate_account_sas,
)

from dropforge.adapters.azure.ledger import PACKED_BYTES, PLAIN_BYTES, TableLedger
from dropforge.adapters.ledger_rows import MAX_COMMIT_BYTES, MAX_SPELLED, MAX_VALUE_BYTES
from dropforge.domain.errors import BadInput, Conflict, Unavailable
from dropforge.ports import Delete, Insert, Ledger, Replace, Row
from tests.azurite import ACCOUNT, KEY, Azurite
from tests.contract.conftest import fresh
from tests.contract.lossy import Lossy, lossy

WIRE_BYTES = 4 * 1024 * 1024


@pytest.fixture
def ledger(azurite: Azurite) -> Iterator[TableLedger]:
    """A ledger with a table of its own."""
    with closing(TableLedger(azurite.connection_string, fresh("own"))) as made:
        made.commit("p", [Insert("old", {"n": 0})])
        yield made


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[Lossy]:
    with lossy(azurite.table_url) as proxy:
        yield proxy


@pytest.fixture
def far(azurite: Azurite, ledger: TableLedger, proxy: Lossy) -> Iterator[TableLedger]:
    """The same ledger, reached through the proxy."""
    storage = azurite.connection_string.replace(azurite.table_url, proxy.url)
    with closing(TableLedger(storage, ledger._place.name, pauses=(0.0, 0.0))) as made:
        yield made


def got(ledger: Ledger, key: str) -> Row:
    row = ledger.get("p", key)
    assert row is not None
    return row


# ------------------------------------------------------------------------------------------ lost answers
@pytest.mark.parametrize("fate", ["lose", "cut", "drop", "fail"])
def test_a_commit_whose_answer_is_lost_is_done_once(far: TableLedger, proxy: Lossy, fate: str) -> None:
    proxy.fates = [fate]
    far.commit("p", [Insert("new", {"n": 1}), Replace("old", {"n": 1}, got(far, "old").etag)])
    assert (got(far, "new").value, got(far, "old").value) == ({"n": 1}, {"n": 1})


@pytest.mark.parametrize("last", ["lose", "drop"])
def test_a_commit_of_which_no_answer_ever_comes_is_found_to_be_done(far: TableLedger, proxy: Lossy, last: str) -> None:
    proxy.fates = ["lose", "drop", last]
    far.commit("p", [Insert("new", {"n": 1})])
    assert got(far, "new").value == {"n": 1}
    assert proxy.fates == []


def test_a_commit_that_never_arrives_is_unavailable(far: TableLedger, proxy: Lossy) -> None:
    proxy.fates = ["drop"] * 3
    with pytest.raises(Unavailable, match="did not say whether 1 writes to 'p' were done"):
        far.commit("p", [Insert("new", {"n": 1})])
    assert far.get("p", "new") is None


def test_a_commit_that_somebody_wrote_over_before_its_answer_was_missed_is_no_conflict(
    ledger: TableLedger, far: TableLedger, proxy: Lossy
) -> None:
    proxy.fates = ["lose"]
    proxy.then = lambda: ledger.commit("p", [Replace("new", {"n": 2}, got(ledger, "new").etag)])
    with pytest.raises(Unavailable):
        far.commit("p", [Insert("new", {"n": 1})])
    proxy.fates = ["lose"]
    proxy.then = lambda: ledger.commit("p", [Replace("new", {"n": 4}, got(ledger, "new").etag)])
    with pytest.raises(Unavailable):
        far.commit("p", [Replace("new", {"n": 3}, got(far, "new").etag)])
    assert got(far, "new").value == {"n": 4}


def test_a_commit_is_known_by_any_of_its_rows(ledger: TableLedger, far: TableLedger, proxy: Lossy) -> None:
    proxy.fates = ["lose"]
    proxy.then = lambda: ledger.commit("p", [Delete("new")])
    far.commit("p", [Insert("new", {"n": 1}), Insert("newer", {"n": 1})])
    assert [row.key for row in far.scan("p")] == ["newer", "old"]


def test_a_delete_whose_answer_is_lost_is_unavailable_and_done(far: TableLedger, proxy: Lossy) -> None:
    proxy.fates = ["lose"]
    with pytest.raises(Unavailable):
        far.commit("p", [Delete("old", got(far, "old").etag)])
    assert far.get("p", "old") is None


def test_a_delete_without_an_etag_whose_answer_is_lost_is_done(far: TableLedger, proxy: Lossy) -> None:
    proxy.fates = ["lose"]
    far.commit("p", [Delete("old"), Insert("new", {"n": 1})])
    assert [row.key for row in far.scan("p")] == ["new"]


def test_after_a_request_that_got_lost_the_one_who_came_first_is_no_conflict_until_asked_again(
    ledger: TableLedger, far: TableLedger, proxy: Lossy
) -> None:
    ledger.commit("p", [Insert("lease", {"owner": "other"})])
    proxy.fates = ["drop"]
    with pytest.raises(Unavailable):
        far.commit("p", [Insert("lease", {"owner": "far"})])
    with pytest.raises(Conflict):
        far.commit("p", [Insert("lease", {"owner": "far"})])


def test_many_that_count_over_a_line_that_loses_answers_lose_and_double_no_count(
    ledger: TableLedger, far: TableLedger, proxy: Lossy
) -> None:
    dice = random.Random(4)
    proxy.fates = [dice.choice(["answer", "answer", "lose", "drop"]) for _ in range(1000)]

    def count(times: int) -> int:
        done = 0
        while done < times:
            row = got(ledger, "old")
            mine = {"n": row.value["n"] + 1, "by": dice.random()}
            try:
                far.commit("p", [Replace("old", mine, row.etag)])
            except Conflict:
                continue
            except Unavailable:
                # Whoever is not told looks for what was meant; others write over it, so only what stands tells.
                if got(ledger, "old").value != mine:
                    unknown.append(mine["by"])
                    continue
            done += 1
        return done

    unknown: list[float] = []
    with ThreadPoolExecutor(3) as pool:
        told = sum(pool.map(count, [10] * 3))
    # What was told to be done was done, and once; what was not told may have been.
    assert told <= got(ledger, "old").value["n"] <= told + len(unknown)


# ------------------------------------------------------------------------------------------ tables and rows
def test_a_table_that_is_not_there_yet_is_an_empty_ledger(azurite: Azurite) -> None:
    name = fresh("missing")
    with closing(TableLedger(azurite.connection_string, name)) as ledger:
        assert (ledger.get("p", "a"), ledger.scan("p"), ledger.count("p", "", 9)) == (None, [], 0)
        # Looking makes nothing: who may only read can look.
        with TableServiceClient.from_connection_string(azurite.connection_string) as service:
            assert name not in [table.name for table in service.list_tables()]
        ledger.commit("p", [Delete("a")])
        with pytest.raises(Conflict):
            ledger.commit("p", [Replace("a", {}, 'W/"x"')])


def test_many_that_need_the_table_at_once_make_it_once(azurite: Azurite) -> None:
    with closing(TableLedger(azurite.connection_string, fresh("first"))) as ledger, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.commit("p", [Insert(f"{n}", {})]), range(8)))
        assert ledger.count("p", "", 100) == 8


def test_small_rows_are_readable_as_they_lie_and_large_ones_are_packed(azurite: Azurite, ledger: TableLedger) -> None:
    noise = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=MAX_VALUE_BYTES - 20))
    large = {"plain": "x" * PLAIN_BYTES, "noise": noise, "umlaut": "ü"}
    ledger.commit("p.a/b", [Insert("run/ü".replace("ü", "1"), {"n": 1})])
    for key, text in large.items():
        ledger.commit("p.a/b", [Insert(key, {"x": text})])
    with TableServiceClient.from_connection_string(azurite.connection_string) as service:
        rows = service.get_table_client(ledger._place.name).query_entities("PartitionKey eq 'p.da.sb'")
        found = {
            row["RowKey"]: {name: row[name] for name in row if name not in ("PartitionKey", "RowKey")} for row in rows
        }
    assert found["run.s1"]["value"] == '{"n":1}'
    assert set(found["run.s1"]) == {"value", "token"}
    assert set(found["plain"]) == set(found["umlaut"]) == {"packed0", "token"}
    assert set(found["noise"]) == {f"packed{n}" for n in range(3)} | {"token"}
    assert all(len(found["noise"][f"packed{n}"]) <= PACKED_BYTES for n in range(3))
    for key, text in large.items():
        row = ledger.get("p.a/b", key)
        assert row is not None and row.value == {"x": text}


def test_the_largest_commits_fit_into_a_transaction(azurite: Azurite, far: TableLedger, proxy: Lossy) -> None:
    dice = random.Random(2)
    long = "k" * (MAX_SPELLED - 20)
    noise = [
        "".join(dice.choices([chr(n) for n in range(0x100, 0x17F)], k=MAX_COMMIT_BYTES // 200 - 10)) for _ in range(100)
    ]
    far.commit(long, [Insert(f"{long}{n:02}", {"x": text}) for n, text in enumerate(noise)])
    # Of the text that is kept as it is, each quote takes two bytes.
    quotes = {"x": '"' * ((PLAIN_BYTES - 8) // 2)}
    far.commit(long, [Insert(f"{long}-{n:02}", quotes) for n in range(100)])
    few = ["".join(dice.choices([chr(n) for n in range(0x100, 0x17F)], k=MAX_VALUE_BYTES // 2 - 10)) for _ in range(7)]
    far.commit(long, [Insert(f"{long}.{n}", {"x": text}) for n, text in enumerate(few)])
    sizes = [size for method, path, size in proxy.requests if path.endswith("$batch")]
    assert len(sizes) == 3
    assert max(sizes) < WIRE_BYTES
    assert far.count(long, "", 1000) == 207


def test_keys_never_stand_in_the_path_of_a_url(far: TableLedger, proxy: Lossy) -> None:
    key = "/" * (MAX_SPELLED // 2)
    far.commit(key, [Insert(key, {"n": 1})])
    row = far.get(key, key)
    assert row is not None
    far.commit(key, [Replace(key, {"n": 2}, row.etag)])
    assert [row.value for row in far.scan(key, key)] == [{"n": 2}]
    far.commit(key, [Delete(key)])
    assert far.get(key, key) is None
    assert all(len(path.partition("?")[0]) < 100 for _, path, _ in proxy.requests)


def test_deletes_of_rows_that_others_deleted_take_one_look_at_each(far: TableLedger, proxy: Lossy) -> None:
    far.commit("p", [Insert(f"{n:03}", {}) for n in range(0, 20, 2)])
    proxy.requests.clear()
    far.commit("p", [Delete(f"{n:03}") for n in range(20)])
    assert far.count("p", "0", 1000) == 0
    assert len([path for _, path, _ in proxy.requests if path.endswith("$batch")]) == 2


def test_a_conflict_names_the_write_that_was_refused_and_not_the_deletes_before_it(ledger: TableLedger) -> None:
    with pytest.raises(Conflict) as caught:
        ledger.commit("p", [Delete("gone"), Insert("new", {}), Delete("also gone"), Insert("old", {}), Insert("z", {})])
    assert caught.value.about == {"key": "old", "partition": "p"}
    assert [row.key for row in ledger.scan("p")] == ["old"]


def test_an_etag_is_good_in_every_process(azurite: Azurite, ledger: TableLedger) -> None:
    with closing(TableLedger(azurite.connection_string, ledger._place.name)) as another:
        another.commit("p", [Replace("old", {"n": 1}, got(ledger, "old").etag)])
        assert got(ledger, "old") == got(another, "old")
        assert ledger.scan("p") == another.scan("p")


# ------------------------------------------------------------------------------------------ who asks
def _sas() -> str:
    return generate_account_sas(
        AzureNamedKeyCredential(ACCOUNT, KEY),
        resource_types=ResourceTypes(service=True, object=True, container=True),
        permission=AccountSasPermissions(
            read=True, write=True, delete=True, list=True, add=True, create=True, update=True
        ),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


@pytest.mark.parametrize("form", ["{url}/{account}?{sas}", "TableEndpoint={url}/{account};SharedAccessSignature={sas}"])
def test_a_sas_opens_the_account_it_names_and_is_never_logged(
    azurite: Azurite, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    sas = _sas()
    storage = form.format(url=azurite.table_url, account=ACCOUNT, sas=sas)
    signature = next(part for part in sas.split("&") if part.startswith("sig="))
    with caplog.at_level(logging.DEBUG), closing(TableLedger(storage, fresh("sas"))) as ledger:
        ledger.commit("p", [Insert("a", {"n": 1})])
        ledger.commit("p", [Insert("b", {"n": 1}), Replace("a", {"n": 2}, got(ledger, "a").etag)])
        assert [row.value for row in ledger.scan("p")] == [{"n": 2}, {"n": 1}]
    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    assert signature.removeprefix("sig=") not in caplog.text
    assert signature not in repr(ledger) + repr(vars(ledger))


def test_a_wrong_key_says_what_to_do_and_not_what_the_key_is(
    azurite: Azurite, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = azurite.connection_string.replace(KEY, "d3Jvbmc=")
    with caplog.at_level(logging.DEBUG), closing(TableLedger(wrong, "any")) as ledger:
        for ask in (lambda: ledger.get("p", "a"), lambda: ledger.commit("p", [Insert("a", {})])):
            with pytest.raises(Unavailable, match=r"Storage Table Data Contributor.*DROPFORGE_STORAGE or") as found:
                ask()
            assert "d3Jvbmc=" not in found.value.message
    assert "d3Jvbmc=" not in caplog.text + repr(ledger)


@pytest.mark.parametrize(
    "setting",
    [
        "AccountKey=c2VjcmV0",
        "secret",
        "http://account.blob.core.windows.net",
        "AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:1/a",
    ],
)
def test_a_setting_that_names_no_table_service_is_refused_without_showing_it(setting: str) -> None:
    with pytest.raises(BadInput, match="setting DROPFORGE_STORAGE or DROPFORGE_LEDGER cannot be used") as found:
        TableLedger(setting)
    assert "secret" not in found.value.message and "c2VjcmV0" not in found.value.message


def test_a_ledger_that_does_not_answer_is_unavailable() -> None:
    nobody = f"AccountName={ACCOUNT};AccountKey={KEY};TableEndpoint=http://127.0.0.1:1/{ACCOUNT}"
    with closing(TableLedger(nobody, pauses=())) as ledger:
        with pytest.raises(Unavailable, match="did not answer"):
            ledger.commit("p", [Insert("a", {})])
        with pytest.raises(Unavailable, match="did not answer"):
            ledger.get("p", "a")
