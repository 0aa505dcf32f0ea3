"""The gate: what becomes of a challenger, given its verdict and the pipeline's policy. One table, no exceptions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dropforge.domain.errors import BadInput
from dropforge.domain.verdicts import Outcome, Verdict


class Action(Enum):
    PROMOTE = "promote"
    ASK = "ask"
    KEEP = "keep"


class FirstRule(Enum):
    """What a pipeline without a champion does with its first model, judged against a constant baseline."""

    # Only if it is better than the baseline.
    PROMOTE = "promote"
    # Whatever the verdict.
    ALWAYS = "always"
    # A person decides, whatever the verdict.
    ASK = "ask"


@dataclass(frozen=True)
class Policy:
    """What to do for each outcome; the `gate` of a pipeline.yaml. Raises `BadInput` for `worse: promote`."""

    better: Action = Action.PROMOTE
    cannot_tell: Action = Action.KEEP
    worse: Action = Action.KEEP
    # A slice that got worse can make the action more careful, never less.
    slice_worse: Action = Action.KEEP
    first: FirstRule = FirstRule.PROMOTE

    def __post_init__(self) -> None:
        if self.worse is Action.PROMOTE:
            raise BadInput("a worse model is never promoted by itself; set worse to ask or keep")


@dataclass(frozen=True)
class Decision:
    """What to do with the challenger, and why in one sentence."""

    action: Action
    reason: str


_CARE = {Action.PROMOTE: 0, Action.ASK: 1, Action.KEEP: 2}

_FIRST: dict[tuple[FirstRule, Outcome], Action] = {
    (FirstRule.PROMOTE, Outcome.BETTER): Action.PROMOTE,
    (FirstRule.PROMOTE, Outcome.CANNOT_TELL): Action.KEEP,
    (FirstRule.PROMOTE, Outcome.WORSE): Action.KEEP,
    (FirstRule.ALWAYS, Outcome.BETTER): Action.PROMOTE,
    (FirstRule.ALWAYS, Outcome.CANNOT_TELL): Action.PROMOTE,
    (FirstRule.ALWAYS, Outcome.WORSE): Action.PROMOTE,
    (FirstRule.ASK, Outcome.BETTER): Action.ASK,
    (FirstRule.ASK, Outcome.CANNOT_TELL): Action.ASK,
    (FirstRule.ASK, Outcome.WORSE): Action.ASK,
}

_ACTIONS = {
    Action.PROMOTE: "it is promoted",
    Action.ASK: "a person decides",
    Action.KEEP: "it is not promoted",
}


def decide(verdict: Verdict, policy: Policy, first: bool) -> Decision:
    """What becomes of the challenger; `first` says that no champion answers now.

    | first | judged against | outcome | a slice is worse | action |
    |---|---|---|---|---|
    | no | champion | any | no | the policy's action for the outcome |
    | no | champion | any | yes | the more careful of that and `slice_worse` |
    | no | baseline | any | any | keep: it never met the champion |
    | yes | any | better | any | `first: promote` and `always` promote, `ask` asks |
    | yes | any | cannot tell, worse | any | `first: promote` keeps, `always` promotes, `ask` asks |

    Slices do not count for a first model: nobody is served worse than before.
    """
    if first:
        action, setting = _FIRST[policy.first, verdict.outcome], f"first: {policy.first.value}"
    elif verdict.against == "baseline":
        return Decision(
            Action.KEEP,
            "The challenger was judged against a constant baseline, but by now there is a champion that it never met: "
            "it is not promoted.",
        )
    else:
        action, setting = _for_outcome(verdict, policy)
    return Decision(action, f"{_finding(verdict, first)}: {_ACTIONS[action]} (gate.{setting}).")


def _for_outcome(verdict: Verdict, policy: Policy) -> tuple[Action, str]:
    action = {
        Outcome.BETTER: policy.better,
        Outcome.CANNOT_TELL: policy.cannot_tell,
        Outcome.WORSE: policy.worse,
    }[verdict.outcome]
    if verdict.slices_worse and _CARE[policy.slice_worse] > _CARE[action]:
        return policy.slice_worse, f"slice_worse: {policy.slice_worse.value}"
    return action, f"{verdict.outcome.value}: {action.value}"


def _finding(verdict: Verdict, first: bool) -> str:
    model = "first model" if first else "challenger"
    other = "a constant baseline" if verdict.against == "baseline" else "the champion"
    finding = {
        Outcome.BETTER: f"The {model} is better than {other}",
        Outcome.CANNOT_TELL: f"Nobody can tell whether the {model} is better than {other}",
        Outcome.WORSE: f"The {model} is worse than {other}",
    }[verdict.outcome]
    if verdict.note:
        finding += f" ({verdict.note})"
    if verdict.slices_worse:
        shown = ", ".join(verdict.slices_worse[:3]) + (", ..." if verdict.slices_worse[3:] else "")
        joint = {Outcome.BETTER: "but", Outcome.CANNOT_TELL: "but", Outcome.WORSE: "and"}[verdict.outcome]
        finding += f", {joint} it is worse in {shown}"
    return finding
