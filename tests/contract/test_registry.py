"""What every model registry promises."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.errors import BadName, Conflict, NotFound
from dropforge.domain.models import Alias, ModelVersion
from tests.azure.aml_bench import SDK_WARNINGS
from tests.contract.conftest import RegistryBench
from tests.contract.samples import NOW, lineage

pytestmark = SDK_WARNINGS
LATER = NOW + timedelta(hours=1)


def registered(models: RegistryBench, run: str, model: str = "flights") -> ModelVersion:
    artifact = f"models/{model}/{run}/model.onnx"
    models.artifacts.put(artifact, f"bytes of {run}".encode())
    return models.registry.register(model, artifact, lineage(run), NOW)


def test_a_version_says_where_its_bytes_are_and_what_made_them(models: RegistryBench) -> None:
    made = registered(models, "r1")
    assert made == ModelVersion(
        model="flights",
        version=1,
        artifact="models/flights/r1/model.onnx",
        sha256=hashlib.sha256(b"bytes of r1").hexdigest(),
        size_bytes=len(b"bytes of r1"),
        created_at=NOW,
        lineage=lineage("r1"),
    )
    assert models.registry.get("flights", 1) == made


def test_versions_count_from_one_for_each_model(models: RegistryBench) -> None:
    assert [registered(models, f"r{n}").version for n in range(3)] == [1, 2, 3]
    assert registered(models, "r0", "weather").version == 1


def test_a_run_that_is_registered_again_has_the_version_it_made(models: RegistryBench) -> None:
    first = registered(models, "r1")
    registered(models, "r2")
    assert models.another.register("flights", first.artifact, lineage("r1"), LATER) == first
    assert [each.version for each in models.registry.list("flights")] == [2, 1]


def test_an_artifact_that_is_not_there_cannot_become_a_version(models: RegistryBench) -> None:
    with pytest.raises(NotFound):
        models.registry.register("flights", "models/flights/none", lineage("r1"), NOW)
    assert models.registry.list("flights") == []
    assert registered(models, "r1").version == 1


def test_a_version_that_was_never_made_is_not_found(models: RegistryBench) -> None:
    registered(models, "r1")
    for model, version in (("flights", 2), ("flights", 0), ("flights", -1), ("weather", 1)):
        with pytest.raises(NotFound):
            models.registry.get(model, version)


def test_versions_are_listed_newest_first_and_no_more_than_asked_for(models: RegistryBench) -> None:
    made = [registered(models, f"r{n:02}") for n in range(12)]
    assert models.registry.list("flights") == made[::-1]
    assert models.registry.list("flights", limit=3) == made[:-4:-1]
    assert models.registry.list("flights", limit=1) == [made[-1]]
    assert models.registry.list("weather") == []


def test_many_hosts_that_register_one_run_at_once_make_one_version(models: RegistryBench) -> None:
    models.artifacts.put("model", b"x")
    both = [models.registry, models.another]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: both[n % 2].register("flights", "model", lineage("r1"), NOW), range(16)))
    assert {each.version for each in made} == {1}
    assert len(models.registry.list("flights")) == 1


def test_many_hosts_that_register_many_runs_at_once_leave_no_gap(models: RegistryBench) -> None:
    models.artifacts.put("model", b"x")
    both = [models.registry, models.another]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: both[n % 2].register("flights", "model", lineage(f"r{n // 2}"), NOW), range(24)))
    assert sorted(each.version for each in made) == sorted([*range(1, 13), *range(1, 13)])
    assert all(made[n].version == made[n + 1].version for n in range(0, 24, 2))
    assert {each.lineage.run for each in models.registry.list("flights")} == {f"r{n}" for n in range(12)}


def test_an_alias_points_nowhere_until_it_is_set(models: RegistryBench) -> None:
    registered(models, "r1")
    assert models.registry.alias("flights", "champion") is None


def test_an_alias_that_is_moved_says_where_it_was(models: RegistryBench) -> None:
    for n in (1, 2, 3):
        registered(models, f"r{n}")
    alias = None
    for version in (1, 3, 2):
        alias = models.registry.set_alias("flights", "champion", version, alias, NOW)
        assert models.another.alias("flights", "champion") == alias
    assert alias is not None
    assert (alias.name, alias.version, alias.history) == ("champion", 2, (1, 3))


def test_an_alias_moved_to_where_it_is_stays_as_it_is(models: RegistryBench) -> None:
    for n in (1, 2):
        registered(models, f"r{n}")
    first = models.registry.set_alias("flights", "champion", 1, None, NOW)
    second = models.registry.set_alias("flights", "champion", 2, first, NOW)
    # A step that runs twice shows what it saw the first time.
    assert models.registry.set_alias("flights", "champion", 2, first, LATER) == second
    assert models.registry.set_alias("flights", "champion", 2, second, LATER) == second
    assert models.registry.set_alias("flights", "champion", 2, None, LATER) == second


def test_an_alias_that_was_moved_meanwhile_is_a_conflict(models: RegistryBench) -> None:
    for n in (1, 2, 3):
        registered(models, f"r{n}")
    first = models.registry.set_alias("flights", "champion", 1, None, NOW)
    second = models.another.set_alias("flights", "champion", 2, first, NOW)
    for expected in (first, None):
        with pytest.raises(Conflict, match="champion"):
            models.registry.set_alias("flights", "champion", 3, expected, NOW)
    assert models.registry.alias("flights", "champion") == second


def test_an_alias_moved_away_and_back_is_a_conflict_too(models: RegistryBench) -> None:
    for n in (1, 2, 3):
        registered(models, f"r{n}")
    first = models.registry.set_alias("flights", "champion", 1, None, NOW)
    second = models.registry.set_alias("flights", "champion", 2, first, NOW)
    back = models.registry.set_alias("flights", "champion", 1, second, NOW)
    with pytest.raises(Conflict):
        models.registry.set_alias("flights", "champion", 3, first, NOW)
    assert models.registry.set_alias("flights", "champion", 3, back, NOW).history == (1, 2, 1)


def test_an_alias_expected_somewhere_but_never_set_is_a_conflict(models: RegistryBench) -> None:
    registered(models, "r1")
    with pytest.raises(Conflict):
        models.registry.set_alias("flights", "champion", 1, Alias("champion", 2, "1"), NOW)
    assert models.registry.alias("flights", "champion") is None


def test_an_alias_cannot_point_at_a_version_that_is_not_there(models: RegistryBench) -> None:
    with pytest.raises(NotFound):
        models.registry.set_alias("flights", "champion", 1, None, NOW)
    assert models.registry.alias("flights", "champion") is None


def test_aliases_and_models_do_not_touch_each_other(models: RegistryBench) -> None:
    registered(models, "r1")
    registered(models, "r1", "weather")
    models.registry.set_alias("flights", "champion", 1, None, NOW)
    assert models.registry.alias("flights", "challenger") is None
    assert models.registry.alias("weather", "champion") is None


def test_an_alias_remembers_the_last_fifty_places(models: RegistryBench) -> None:
    for n in (1, 2):
        registered(models, f"r{n}")
    alias = None
    for move in range(60):
        alias = models.registry.set_alias("flights", "champion", 1 + move % 2, alias, NOW)
    assert alias is not None
    assert (alias.version, alias.history) == (2, (2, 1) * 25)


def test_of_many_hosts_that_move_an_alias_from_one_place_one_wins(models: RegistryBench) -> None:
    for n in range(8):
        registered(models, f"r{n}")

    def move(version: int) -> bool:
        try:
            models.registry.set_alias("flights", "champion", version, None, NOW)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(move, range(1, 9)))
    alias = models.registry.alias("flights", "champion")
    assert alias is not None
    assert [version for version, ok in enumerate(won, start=1) if ok] == [alias.version]


def test_names_that_are_none_are_refused(models: RegistryBench) -> None:
    registered(models, "r1")
    for call in (
        lambda: models.registry.register("No Name", "a", lineage("r1"), NOW),
        lambda: models.registry.get("", 1),
        lambda: models.registry.list("a/b"),
        lambda: models.registry.alias("flights", "a/b"),
        lambda: models.registry.set_alias("flights", "", 1, None, NOW),
    ):
        with pytest.raises(BadName):
            call()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metrics=st.dictionaries(st.text("abc", min_size=1), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    seed=st.integers(0, 2**32 - 1),
    note=st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)
def test_any_lineage_comes_back_as_it_was(
    models: RegistryBench, metrics: dict[str, float], seed: int, note: str
) -> None:
    models.artifacts.put("model", b"x")
    run = hashlib.sha256(repr((metrics, seed, note)).encode()).hexdigest()[:32]
    told = replace(lineage(run), metrics=metrics, seed=seed, parameters={"note": note})
    made = models.registry.register("law", "model", told, NOW)
    assert models.registry.get("law", made.version).lineage == told
