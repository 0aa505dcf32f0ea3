"""Verdicts: the laws of the judge, what it finds when something is planted, and how often it is wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge import wire
from dropforge.domain.bootstrap import fewest_blocks, t_quantile
from dropforge.domain.errors import BadInput
from dropforge.domain.verdicts import (
    LOWER_IS_BETTER,
    MIN_SLICE_ROWS,
    BlockScore,
    Evidence,
    Outcome,
    Verdict,
    judge,
    summary,
)

MIRRORED = {
    Outcome.BETTER: Outcome.WORSE,
    Outcome.WORSE: Outcome.BETTER,
    Outcome.CANNOT_TELL: Outcome.CANNOT_TELL,
}


def evidence(
    gains: list[float],
    rows: list[int] | None = None,
    slices: dict[str, list[float]] | None = None,
    slice_rows: int = 100,
    metric: str = "log_loss",
) -> Evidence:
    """Blocks where the challenger gains so much on a champion that scores 0.5."""
    sign = -1 if LOWER_IS_BETTER[metric] else 1
    counts = rows or [1000] * len(gains)
    scores = [
        BlockScore(f"2013-01-{day:02}", None, count, 0.5, 0.5 + sign * gain)
        for day, (gain, count) in enumerate(zip(gains, counts, strict=True), start=1)
    ]
    for name, part in (slices or {}).items():
        scores += [
            BlockScore(f"2013-01-{day:02}", name, slice_rows, 0.5, 0.5 + sign * gain)
            for day, gain in enumerate(part, start=1)
        ]
    return Evidence(
        metric, LOWER_IS_BETTER[metric], "champion", 3, tuple(scores), 10_000, sum(counts), 0,
        "2013-01-01T00:00:00Z", "2013-01-31T23:00:00Z",
    )  # fmt: skip


def swapped(one: Evidence) -> Evidence:
    blocks = tuple(replace(score, champion=score.challenger, challenger=score.champion) for score in one.blocks)
    return replace(one, blocks=blocks)


def noisy(mean: float, blocks: int = 14, noise: float = 0.02, seed: int = 1) -> list[float]:
    generator = random.Random(seed)
    return [mean + generator.gauss(0, noise) for _ in range(blocks)]


def quick(one: Evidence, *, confidence: float = 0.9, min_improvement: float = 0.0, resamples: int = 400) -> Verdict:
    return judge(one, confidence=confidence, min_improvement=min_improvement, resamples=resamples, seed=0)


# ------------------------------------------------------------------------------------------------ what it finds
@pytest.mark.parametrize("metric", list(LOWER_IS_BETTER))
def test_a_planted_improvement_is_better_and_a_planted_harm_worse_whichever_way_the_metric_runs(metric: str) -> None:
    better = judge(evidence(noisy(0.03), metric=metric), confidence=0.9, seed=0)
    worse = judge(evidence(noisy(-0.03), metric=metric), confidence=0.9, seed=0)
    assert better.outcome is Outcome.BETTER
    assert better.effect == pytest.approx(0.03, abs=0.01)
    assert better.low is not None and better.low > 0
    assert worse.outcome is Outcome.WORSE
    assert worse.high is not None and worse.high < 0


def test_identical_models_cannot_be_told_apart_and_have_no_effect() -> None:
    verdict = quick(evidence([0.0] * 14))
    assert (verdict.outcome, verdict.effect, verdict.low, verdict.high) == (Outcome.CANNOT_TELL, 0.0, 0.0, 0.0)
    assert verdict.blocks_needed is None
    assert "the same in every block" in verdict.note


def test_rounding_in_the_last_digits_is_no_difference() -> None:
    rounded = tuple(replace(score, challenger=score.champion * (1 - 1e-12)) for score in evidence([0.0] * 14).blocks)
    assert quick(replace(evidence([0.0] * 14), blocks=rounded)).outcome is Outcome.CANNOT_TELL


def test_one_good_day_among_many_indifferent_ones_proves_nothing() -> None:
    assert quick(evidence([0.5] + [0.0] * 13)).outcome is Outcome.CANNOT_TELL


def test_large_blocks_count_for_more_than_small_ones() -> None:
    gains, rows = [0.1, -0.1] * 7, [1000, 10] * 7
    verdict = quick(evidence(gains, rows))
    assert verdict.effect == pytest.approx((1000 - 10) / 1010 * 0.1)
    assert verdict.champion_score == pytest.approx(0.5)
    assert verdict.challenger_score == pytest.approx(0.5 - (1000 - 10) / 1010 * 0.1)
    assert verdict.rows == sum(rows)


def test_fewer_blocks_than_chance_could_align_cannot_tell_and_say_how_many_are_needed() -> None:
    for confidence, fewest in ((0.6, 3), (0.9, 5), (0.95, 6), (0.99, 8)):
        assert fewest_blocks(confidence) == fewest
        few = quick(evidence([0.1] * (fewest - 1)), confidence=confidence)
        assert few.outcome is Outcome.CANNOT_TELL
        assert few.low is None and few.high is None
        assert few.blocks_needed is not None and few.blocks_needed >= fewest
        assert f"at least {fewest} blocks are needed" in few.note
        assert quick(evidence([0.1] * fewest), confidence=confidence).outcome is Outcome.BETTER


def test_one_block_that_holds_nearly_all_rows_is_one_block() -> None:
    verdict = quick(evidence([0.1] * 14, [1_000_000] + [10] * 13))
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert "in one of the 14 blocks" in verdict.note


def test_no_block_at_all_cannot_tell() -> None:
    verdict = quick(evidence([]))
    assert (verdict.outcome, verdict.effect, verdict.blocks) == (Outcome.CANNOT_TELL, None, 0)
    assert wire.from_json(Verdict, wire.to_json(verdict)) == verdict
    assert summary(verdict) == "cannot tell: no block could be judged"


def test_an_improvement_smaller_than_asked_for_is_not_better_and_no_number_of_blocks_makes_it_so() -> None:
    gains = noisy(0.03, noise=0.002)
    assert quick(evidence(gains)).outcome is Outcome.BETTER
    verdict = quick(evidence(gains), min_improvement=0.1)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert verdict.blocks_needed is None
    assert "smaller than the 0.1 asked for" in verdict.note


def test_a_harm_is_worse_whatever_improvement_was_asked_for() -> None:
    assert quick(evidence(noisy(-0.03)), min_improvement=0.1).outcome is Outcome.WORSE


# ------------------------------------------------------------------------------------------------ blocks needed
def test_a_larger_effect_needs_fewer_blocks() -> None:
    noise = noisy(0.0, blocks=8)
    centred = [value - sum(noise) / len(noise) for value in noise]
    needed = [
        quick(evidence([value + effect for value in centred])).blocks_needed for effect in (0.0005, 0.001, 0.002, 0.004)
    ]
    assert all(count is not None and count > 8 for count in needed)
    assert needed == sorted(needed, key=lambda count: -(count or 0))
    assert len(set(needed)) == len(needed)


def test_as_many_blocks_as_were_said_to_be_needed_do_tell_four_times_in_five() -> None:
    few = quick(evidence([0.01 + value for value in (0.03, -0.03, 0.02, -0.02, 0.025, -0.025, 0.0)]))
    assert few.outcome is Outcome.CANNOT_TELL and few.blocks_needed is not None
    spread = math.sqrt(2 * (0.03**2 + 0.02**2 + 0.025**2) / 6)
    told = sum(
        quick(evidence(noisy(0.01, few.blocks_needed, spread, seed)), resamples=200).outcome is Outcome.BETTER
        for seed in range(60)
    )
    assert 40 <= told <= 56


# ------------------------------------------------------------------------------------------------ slices
def test_a_slice_that_got_worse_is_found_inside_a_better_whole() -> None:
    slices = {"origin=EWR": noisy(0.03), "origin=JFK": noisy(-0.05, seed=2), "origin=LGA": noisy(0.0, seed=3)}
    verdict = quick(evidence(noisy(0.03), slices=slices), resamples=2000)
    assert verdict.outcome is Outcome.BETTER
    assert [(one.slice, one.outcome) for one in verdict.slices] == [
        ("origin=EWR", Outcome.BETTER),
        ("origin=JFK", Outcome.WORSE),
        ("origin=LGA", Outcome.CANNOT_TELL),
    ]
    assert verdict.slices_worse == ("origin=JFK",)


def test_a_slice_with_few_rows_or_blocks_cannot_tell_and_costs_the_others_nothing() -> None:
    gains = noisy(-0.02)
    alone = quick(evidence(gains, slices={"origin=EWR": gains}))
    many = {f"origin=X{index}": [-0.1] * 3 for index in range(20)}
    crowded = quick(evidence(gains, slices={"origin=EWR": gains, **many}))
    assert crowded.slices[0] == alone.slices[0]
    assert all(one.outcome is Outcome.CANNOT_TELL for one in crowded.slices[1:])
    thin = quick(evidence(gains, slices={"origin=EWR": [-0.1] * 14}, slice_rows=MIN_SLICE_ROWS // 14))
    assert thin.slices[0].outcome is Outcome.CANNOT_TELL
    assert f"at least {MIN_SLICE_ROWS} rows are needed" in thin.slices[0].note


def test_the_more_slices_are_judged_the_wider_is_the_interval_of_each() -> None:
    gains = noisy(-0.012)
    widths = []
    for count in (1, 5, 25):
        slices = {f"origin=X{index:02}": gains for index in range(count)}
        first = quick(evidence(gains, slices=slices), resamples=4000).slices[0]
        assert first.low is not None and first.high is not None
        widths.append(first.high - first.low)
    assert widths == sorted(widths) and widths[0] < widths[2]
    # One slice is held to the same interval as the whole.
    whole = quick(evidence(gains), resamples=4000)
    assert whole.low is not None and whole.high is not None
    assert widths[0] == pytest.approx(whole.high - whole.low)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_score_that_is_no_number_is_refused_by_the_name_of_its_block(bad: float) -> None:
    whole = evidence([0.1] * 6, slices={"origin=JFK": [0.1] * 6})
    blocks = list(whole.blocks)
    blocks[2] = replace(blocks[2], challenger=bad)
    with pytest.raises(BadInput, match=r"block '2013-01-03': log_loss of the challenger is"):
        quick(replace(whole, blocks=tuple(blocks)))
    blocks = list(whole.blocks)
    blocks[8] = replace(blocks[8], champion=bad)
    with pytest.raises(BadInput, match=r"block '2013-01-03' of slice 'origin=JFK': log_loss of the champion is"):
        quick(replace(whole, blocks=tuple(blocks)))


def test_a_block_without_rows_or_there_twice_is_refused() -> None:
    whole = evidence([0.1] * 6)
    with pytest.raises(BadInput, match=r"'2013-01-01' has 0 rows"):
        quick(replace(whole, blocks=(replace(whole.blocks[0], rows=0), *whole.blocks[1:])))
    with pytest.raises(BadInput, match=r"'2013-01-01' is there twice"):
        quick(replace(whole, blocks=(*whole.blocks, whole.blocks[0])))


def test_a_metric_that_runs_the_wrong_way_is_refused() -> None:
    with pytest.raises(BadInput, match="lower_is_better"):
        quick(replace(evidence([0.1] * 6), lower_is_better=False))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"confidence": 1.0}, "confidence must lie between"),
        ({"confidence": math.nan}, "confidence must lie between"),
        ({"min_improvement": -0.1}, "min_improvement must be zero or more"),
        ({"min_improvement": math.inf}, "min_improvement must be zero or more"),
        ({"resamples": 10}, "at least 100 resamples"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        judge(evidence([0.1] * 6), **{"confidence": 0.9, "seed": 0, **arguments})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ laws
score = st.floats(min_value=-10, max_value=10, allow_nan=False).map(lambda value: round(value, 6))


@st.composite
def measured(draw: st.DrawFn) -> Evidence:
    blocks = []
    for name in (None, "origin=EWR", "origin=JFK"):
        for day in range(draw(st.integers(min_value=0 if name else 1, max_value=9))):
            rows = draw(st.integers(min_value=1, max_value=500))
            blocks.append(BlockScore(f"day {day}", name, rows, draw(score), draw(score)))
    return replace(evidence([]), blocks=tuple(blocks), metric="mae")


@settings(max_examples=25, deadline=None)
@given(measured())
def test_swapping_the_models_mirrors_the_verdict_exactly(one: Evidence) -> None:
    there, back = quick(one, resamples=200), quick(swapped(one), resamples=200)
    assert back.outcome is MIRRORED[there.outcome]
    assert back.effect is not None and there.effect == -back.effect
    assert (there.low is None) == (back.low is None)
    if there.low is not None and there.high is not None:
        assert (back.low, back.high) == (-there.high, -there.low)
    assert back.blocks_needed == there.blocks_needed
    assert [one.outcome for one in back.slices] == [MIRRORED[one.outcome] for one in there.slices]


@settings(max_examples=25, deadline=None)
@given(measured(), st.randoms(use_true_random=False))
def test_the_verdict_depends_on_the_evidence_and_the_seed_alone_not_on_their_order(
    one: Evidence, shuffler: random.Random
) -> None:
    blocks = list(one.blocks)
    shuffler.shuffle(blocks)
    assert quick(replace(one, blocks=tuple(blocks)), resamples=200) == quick(one, resamples=200)


@settings(max_examples=25, deadline=None)
@given(measured(), st.floats(min_value=0, max_value=5))
def test_the_interval_holds_the_effect_and_decides_as_documented(one: Evidence, wanted: float) -> None:
    verdict = quick(one, min_improvement=wanted, resamples=200)
    if verdict.low is None or verdict.high is None or verdict.effect is None:
        assert verdict.outcome is Outcome.CANNOT_TELL
        return
    assert verdict.low <= verdict.effect <= verdict.high
    assert (verdict.outcome is Outcome.BETTER) == (verdict.low > wanted)
    assert (verdict.outcome is Outcome.WORSE) == (verdict.high < 0)


@settings(max_examples=25, deadline=None)
@given(measured())
def test_a_metric_in_other_units_gives_the_same_verdict_in_those_units(one: Evidence) -> None:
    doubled = tuple(
        replace(block, champion=2 * block.champion, challenger=2 * block.challenger) for block in one.blocks
    )
    before, after = quick(one, resamples=200), quick(replace(one, blocks=doubled), resamples=200)
    assert (after.outcome, after.blocks_needed) == (before.outcome, before.blocks_needed)
    assert after.low == (None if before.low is None else 2 * before.low)


@settings(max_examples=25, deadline=None)
@given(measured())
def test_evidence_and_verdict_survive_json(one: Evidence) -> None:
    assert wire.from_json(Evidence, wire.to_json(one)) == one
    verdict = quick(one, resamples=200)
    assert wire.from_json(Verdict, wire.to_json(verdict)) == verdict


# ------------------------------------------------------------------------------------------------ how often it is wrong
def null_evidence(generator: random.Random, blocks: int, uneven: bool, slices: int = 0) -> Evidence:
    """Two models that are equally good: within a block the rows move together (the day's weather, and a slow drift
    through the day), so that a test on single rows would see differences everywhere."""
    scores = []
    for block in range(blocks):
        rows = max(20, int(200 * math.exp(generator.gauss(0, 0.7)))) if uneven else 200
        for name in (None, *(f"origin=X{index}" for index in range(slices))):
            drift = total = 0.0
            weather = generator.gauss(0, 0.05)
            for _ in range(20):
                drift = 0.9 * drift + generator.gauss(0, 0.1)
                total += weather + drift
            scores.append(BlockScore(f"day {block:02}", name, rows, 0.5, 0.5 - total / 20))
    return replace(evidence([]), blocks=tuple(scores))


def false_calls(times: int, blocks: int, uneven: bool, confidence: float, resamples: int) -> tuple[float, float]:
    generator = random.Random(20130101)
    outcomes = [
        judge(null_evidence(generator, blocks, uneven), confidence=confidence, resamples=resamples, seed=turn).outcome
        for turn in range(times)
    ]
    return outcomes.count(Outcome.BETTER) / times, outcomes.count(Outcome.WORSE) / times


def test_equal_models_are_called_better_about_as_often_as_the_confidence_allows() -> None:
    better, worse = false_calls(times=400, blocks=14, uneven=False, confidence=0.9, resamples=300)
    # 5 % nominal; three standard errors of 400 trials are 3.3 %.
    assert 0.017 <= better <= 0.083
    assert 0.017 <= worse <= 0.083


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("blocks", [6, 7, 14, 30])
def test_the_false_rates_hold_for_few_many_and_uneven_blocks(blocks: int, uneven: bool, confidence: float) -> None:
    times, nominal = 3000, (1 - confidence) / 2
    margin = 4 * math.sqrt(nominal * (1 - nominal) / times)
    for rate in false_calls(times, blocks, uneven, confidence, resamples=1000):
        # Uneven blocks are judged on the safe side; very few blocks are up to a fifth beyond the nominal rate.
        assert rate <= 1.2 * nominal + margin
        assert rate >= (0.4 if uneven else 0.8) * nominal - margin


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_slices_of_equal_models_raise_a_false_alarm_no_more_often_than_one_would() -> None:
    generator, times = random.Random(7), 1500
    alarms = sum(
        bool(judge(null_evidence(generator, 14, False, slices=10), confidence=0.9, seed=turn).slices_worse)
        for turn in range(times)
    )
    # 5 % nominal for all ten together; without the correction it would be 1 - 0.95^10 = 40 %.
    assert 0.01 <= alarms / times <= 0.075


# ------------------------------------------------------------------------------------------------ the one line
def test_the_summary_is_one_line_a_person_can_act_on() -> None:
    verdict = Verdict(
        Outcome.BETTER, 0.014, 0.006, 0.022, 0.9, 14, 12_000, 0.412, 0.398, "log_loss", "champion", 3
    )  # fmt: skip
    assert summary(verdict) == "better: log_loss 0.412 -> 0.398 (-3.4 %), 90 % interval [+0.006, +0.022], 14 blocks"
    unsure = replace(verdict, outcome=Outcome.CANNOT_TELL, low=-0.002, against="baseline", blocks_needed=46)
    assert summary(unsure) == (
        "cannot tell: log_loss 0.412 -> 0.398 (-3.4 %) against a constant baseline, "
        "90 % interval [-0.002, +0.022], 14 blocks, about 46 blocks would tell"
    )
    assert summary(quick(evidence([0.1]))).startswith(
        "cannot tell: log_loss 0.50 -> 0.40 (-20.0 %), 1 block, at least 5"
    )


def test_the_summary_never_rounds_a_decisive_bound_to_zero() -> None:
    verdict = Verdict(Outcome.BETTER, 0.05, 0.0004, 0.1, 0.9, 14, 12_000, 0.412, 0.362, "log_loss", "champion")
    assert "interval [+0.0004, +0.1000]" in summary(verdict)


def test_the_summary_names_the_slices_that_got_worse() -> None:
    slices = {f"origin={name}": noisy(-0.09, seed=9) for name in ("ABQ", "EWR", "JFK", "LGA")}
    line = summary(quick(evidence(noisy(0.03), slices=slices), resamples=1000))
    assert "worse in origin=ABQ, origin=EWR, origin=JFK, ..." in line


@pytest.mark.parametrize(
    ("probability", "freedom", "table"),
    # From the table of Student's t in the NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
    [(0.95, 1, 6.314), (0.95, 6, 1.943), (0.975, 13, 2.160), (0.975, 30, 2.042), (0.99, 4, 3.747), (0.90, 9, 1.383)],
)
def test_the_t_quantile_is_the_tables(probability: float, freedom: int, table: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(table, abs=5e-4)
