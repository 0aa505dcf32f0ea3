"""The gate: the whole table of outcome, slices and first model."""

from __future__ import annotations

import itertools

import pytest

from dropforge.domain.errors import BadInput
from dropforge.domain.gate import Action, FirstRule, Policy, decide
from dropforge.domain.verdicts import Outcome, SliceVerdict, Verdict

PROMOTE, ASK, KEEP = Action.PROMOTE, Action.ASK, Action.KEEP
BETTER, CANNOT_TELL, WORSE = Outcome.BETTER, Outcome.CANNOT_TELL, Outcome.WORSE


def verdict(outcome: Outcome, slices: tuple[Outcome, ...] = (), against: str = "champion", note: str = "") -> Verdict:
    parts = tuple(
        SliceVerdict(f"origin=X{index}", one, 0.0, None, None, 14, 100, 0.4, 0.4) for index, one in enumerate(slices)
    )
    return Verdict(
        outcome, 0.0, None, None, 0.9, 14, 1000, 0.4, 0.4, "log_loss",
        "baseline" if against == "baseline" else "champion", slices=parts, note=note,
    )  # fmt: skip


# What pipeline.yaml says, for every allowed combination: (better, cannot_tell, worse, slice_worse).
POLICIES = [
    Policy(better, cannot_tell, worse, slice_worse)
    for better, cannot_tell, worse, slice_worse in itertools.product(Action, Action, (ASK, KEEP), Action)
]

# (the action for the outcome, the action for a worse slice) -> what happens when both hold.
MORE_CAREFUL = {
    (PROMOTE, PROMOTE): PROMOTE,
    (PROMOTE, ASK): ASK,
    (PROMOTE, KEEP): KEEP,
    (ASK, PROMOTE): ASK,
    (ASK, ASK): ASK,
    (ASK, KEEP): KEEP,
    (KEEP, PROMOTE): KEEP,
    (KEEP, ASK): KEEP,
    (KEEP, KEEP): KEEP,
}


@pytest.mark.parametrize("slices", [(), (BETTER,), (BETTER, CANNOT_TELL)])
def test_without_a_worse_slice_the_outcome_alone_decides(slices: tuple[Outcome, ...]) -> None:
    for policy in POLICIES:
        assert decide(verdict(BETTER, slices), policy, first=False).action is policy.better
        assert decide(verdict(CANNOT_TELL, slices), policy, first=False).action is policy.cannot_tell
        assert decide(verdict(WORSE, slices), policy, first=False).action is policy.worse


@pytest.mark.parametrize("slices", [(WORSE,), (BETTER, WORSE, CANNOT_TELL)])
def test_a_worse_slice_makes_every_outcome_as_careful_as_the_policy_says_and_never_less(
    slices: tuple[Outcome, ...],
) -> None:
    for policy in POLICIES:
        for outcome, plain in ((BETTER, policy.better), (CANNOT_TELL, policy.cannot_tell), (WORSE, policy.worse)):
            action = decide(verdict(outcome, slices), policy, first=False).action
            assert action is MORE_CAREFUL[plain, policy.slice_worse]


@pytest.mark.parametrize(
    ("rule", "better", "cannot_tell", "worse"),
    [
        (FirstRule.PROMOTE, PROMOTE, KEEP, KEEP),
        (FirstRule.ALWAYS, PROMOTE, PROMOTE, PROMOTE),
        (FirstRule.ASK, ASK, ASK, ASK),
    ],
)
@pytest.mark.parametrize("slices", [(), (WORSE,)])
@pytest.mark.parametrize("against", ["baseline", "champion"])
def test_a_first_model_follows_the_first_rule_alone(
    rule: FirstRule, better: Action, cannot_tell: Action, worse: Action, slices: tuple[Outcome, ...], against: str
) -> None:
    policy = Policy(better=ASK, cannot_tell=ASK, worse=ASK, slice_worse=ASK, first=rule)
    assert decide(verdict(BETTER, slices, against), policy, first=True).action is better
    assert decide(verdict(CANNOT_TELL, slices, against), policy, first=True).action is cannot_tell
    assert decide(verdict(WORSE, slices, against), policy, first=True).action is worse


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_model_that_never_met_the_champion_is_not_promoted_over_it(outcome: Outcome) -> None:
    decision = decide(verdict(outcome, against="baseline"), Policy(PROMOTE, PROMOTE, ASK), first=False)
    assert decision.action is KEEP
    assert "never met" in decision.reason


def test_the_default_policy_promotes_only_what_is_better_everywhere() -> None:
    promoted = [
        (outcome, slices)
        for outcome, slices in itertools.product(Outcome, [(), (WORSE,)])
        if decide(verdict(outcome, slices), Policy(), first=False).action is PROMOTE
    ]
    assert promoted == [(BETTER, ())]


def test_a_policy_that_promotes_what_is_worse_is_refused() -> None:
    with pytest.raises(BadInput, match="never promoted by itself"):
        Policy(worse=PROMOTE)


def test_the_reason_is_one_sentence_that_names_the_finding_and_the_setting() -> None:
    worse_slice = decide(verdict(BETTER, (WORSE, BETTER)), Policy(), first=False)
    assert worse_slice.reason == (
        "The challenger is better than the champion, but it is worse in origin=X0: "
        "it is not promoted (gate.slice_worse: keep)."
    )
    unsure = decide(verdict(CANNOT_TELL, note="at least 5 blocks are needed"), Policy(cannot_tell=ASK), first=False)
    assert unsure.reason == (
        "Nobody can tell whether the challenger is better than the champion (at least 5 blocks are needed): "
        "a person decides (gate.cannot_tell: ask)."
    )
    first = decide(verdict(BETTER, against="baseline"), Policy(), first=True)
    assert first.reason == "The first model is better than a constant baseline: it is promoted (gate.first: promote)."


def test_every_reason_is_one_line_that_ends() -> None:
    for outcome, slices, against, first in itertools.product(
        Outcome, [(), (WORSE,) * 5], ["champion", "baseline"], [True, False]
    ):
        reason = decide(verdict(outcome, slices, against), Policy(), first).reason
        assert reason.endswith(".") and "\n" not in reason
