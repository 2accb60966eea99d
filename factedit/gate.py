"""The rule that decides, from paired before/after answers, whether a candidate is promoted. No torch here.

Over the probes that the base version knows, per group and over all of them, each with Holm's correction over
the groups (Holm 1979): McNemar's exact one-sided test of right-to-wrong against wrong-to-right flips (McNemar
1947), and the exact binomial test of the share of known probes lost against the margin. Over all of them, the
exact upper confidence bound of that share (Clopper and Pearson 1934) against the margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy.stats import beta, binom

from factedit.specs import GateSpec

Decision = Literal["pass", "refuse", "inconclusive"]
ALL = "all"


@dataclass(frozen=True, slots=True)
class Pair:
    """One probe's outcome before and after: whether the version knew it."""

    probe_id: str
    group: str
    before: bool
    after: bool


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The tests of one group; `share_lost` and `upper_bound` are None when nothing was known.

    `holm_p`: McNemar's p, corrected; `beyond_p`: that of so many losses if the share lost were the margin.
    """

    group: str
    known: int
    lost: int
    gained: int
    share_lost: float | None
    upper_bound: float | None
    mcnemar_p: float
    holm_p: float
    beyond_p: float
    decision: Decision


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, why, and the table that it rests on."""

    decision: Decision
    reasons: tuple[str, ...]
    margin: float
    alpha: float
    confidence: float
    groups: tuple[GroupResult, ...]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "reasons": list(self.reasons), "groups": [asdict(g) for g in self.groups]}


def judge(pairs: Sequence[Pair], efficacy: float, spec: GateSpec) -> Verdict:
    """Decide on a candidate from its probes' pairs and its efficacy (share of the edits that hold).

    Refused: too few edits hold; or flips are significant in any group; or so is it, at 1 - confidence,
    that the share lost lies beyond the margin. Passed: the upper bound over all probes lies inside the
    margin. Otherwise inconclusive: more probes may settle it.
    """
    grouped: dict[str, list[Pair]] = {ALL: list(pairs)}
    for pair in pairs:
        grouped.setdefault(pair.group, []).append(pair)
    p_values = {name: mcnemar(*_flips(members)) for name, members in grouped.items()}
    adjusted = holm(p_values)
    beyond = holm({name: _beyond(members, spec) for name, members in grouped.items()})
    groups = tuple(
        _group(name, members, p_values[name], adjusted[name], beyond[name], spec)
        for name, members in grouped.items()
    )
    reasons = _reasons(groups, efficacy, spec)
    if reasons:
        decision: Decision = "refuse"
    elif groups[0].decision == "pass":
        decision = "pass"
    else:
        decision = "inconclusive"
        reasons = [_inconclusive(groups[0], spec)]
    return Verdict(decision, tuple(reasons), spec.margin, spec.alpha, spec.confidence, groups)


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact one-sided p: as many losses or more, if either flip were equally likely."""
    return 1.0 if lost == 0 else float(binom.sf(lost - 1, lost + gained, 0.5))


def upper_bound(lost: int, known: int, confidence: float) -> float:
    """Clopper-Pearson's one-sided upper bound of a share; 0 of n gives about 3/n at 95 %."""
    return 1.0 if lost >= known else float(beta.ppf(confidence, lost + 1, known - lost))


def beyond_margin(lost: int, known: int, margin: float) -> float:
    """The exact p of as many losses or more, if each known probe were lost with probability `margin`."""
    return 1.0 if lost == 0 else float(binom.sf(lost - 1, known, margin))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = running
    return adjusted


def _flips(pairs: Sequence[Pair]) -> tuple[int, int]:
    lost = sum(pair.before and not pair.after for pair in pairs)
    gained = sum(pair.after and not pair.before for pair in pairs)
    return lost, gained


def _beyond(pairs: Sequence[Pair], spec: GateSpec) -> float:
    return beyond_margin(_flips(pairs)[0], sum(pair.before for pair in pairs), spec.margin)


def _group(
    name: str, members: Sequence[Pair], mcnemar_p: float, holm_p: float, beyond_p: float, spec: GateSpec
) -> GroupResult:
    known = sum(pair.before for pair in members)
    lost, gained = _flips(members)
    bound = upper_bound(lost, known, spec.confidence) if known else None
    decision: Decision = "inconclusive"
    if holm_p < spec.alpha or beyond_p < 1 - spec.confidence:
        decision = "refuse"
    elif bound is not None and bound <= spec.margin:
        decision = "pass"
    return GroupResult(
        group=name,
        known=known,
        lost=lost,
        gained=gained,
        share_lost=lost / known if known else None,
        upper_bound=bound,
        mcnemar_p=mcnemar_p,
        holm_p=holm_p,
        beyond_p=beyond_p,
        decision=decision,
    )


def _reasons(groups: Sequence[GroupResult], efficacy: float, spec: GateSpec) -> list[str]:
    reasons = []
    if efficacy < spec.min_efficacy:
        reasons.append(f"Only {efficacy:.0%} of the edits hold; the gate asks for {spec.min_efficacy:.0%}.")
    for group in groups:
        if group.decision == "refuse":
            reasons.append(
                f"Of the {group.known} known probes in group '{group.group}' {group.lost} were lost, "
                f"{group.gained} gained (with Holm's correction, McNemar p = {group.holm_p:.2g}, and "
                f"p = {group.beyond_p:.2g} of so many at the margin of {spec.margin:.1%})."
            )
    return reasons


def _inconclusive(group: GroupResult, spec: GateSpec) -> str:
    if group.upper_bound is None:
        return "The base version knows none of the probes, so nothing can be held against the candidate."
    return (
        f"{group.lost} of {group.known} known probes were lost: the {spec.confidence:.0%} upper bound "
        f"{group.upper_bound:.1%} is not inside the margin of {spec.margin:.1%}. More probes would settle it."
    )
