"""The gate: hand-computed tests, and what each outcome of the probes leads to."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from factedit.gate import Pair, Verdict, beyond_margin, holm, judge, mcnemar, upper_bound
from factedit.specs import GateSpec

SPEC = GateSpec(margin=0.01, alpha=0.01, confidence=0.95, min_efficacy=0.5)


def pairs(kept: int = 0, lost: int = 0, gained: int = 0, ignorant: int = 0, group: str = "far") -> list[Pair]:
    outcomes = [(True, True)] * kept + [(True, False)] * lost
    outcomes += [(False, True)] * gained + [(False, False)] * ignorant
    return [Pair(f"{group} {i}", group, before, after) for i, (before, after) in enumerate(outcomes)]


def reasons(verdict: Verdict) -> str:
    return "\n".join(verdict.reasons)


# McNemar's exact test


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (0, 0, 1.0),
        (0, 5, 1.0),
        (1, 0, 1 / 2),
        (5, 0, 1 / 32),
        (3, 1, 5 / 16),  # (4 + 1) of 16 ways
        (8, 2, 56 / 1024),  # (45 + 10 + 1) of 1024 ways
        (7, 0, 1 / 128),
        (1, 1, 3 / 4),
    ],
)
def test_mcnemars_p_is_the_share_of_coin_tosses_with_as_many_losses(lost: int, gained: int, p: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_is_the_sum_of_binomial_terms(lost: int, gained: int) -> None:
    flips = lost + gained
    ways = sum(math.comb(flips, k) for k in range(lost, flips + 1))
    assert mcnemar(lost, gained) == pytest.approx(ways / 2**flips, rel=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_one_more_loss_is_never_less_significant_and_one_more_gain_never_more(lost: int, gained: int) -> None:
    assert mcnemar(lost + 1, gained) <= mcnemar(lost, gained)
    assert mcnemar(lost, gained + 1) >= mcnemar(lost, gained)


# Clopper-Pearson's bounds


@pytest.mark.parametrize("known", [1, 10, 59, 299])
def test_the_bound_of_no_loss_has_its_closed_form(known: int) -> None:
    assert upper_bound(0, known, 0.95) == pytest.approx(1 - 0.05 ** (1 / known), rel=1e-9)


@settings(deadline=None)
@given(st.data(), st.integers(1, 500), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bound_is_scipys_exact_one_sided_one(data: st.DataObject, known: int, confidence: float) -> None:
    lost = data.draw(st.integers(0, known))
    above = binomtest(lost, known, alternative="less").proportion_ci(confidence, method="exact")
    assert upper_bound(lost, known, confidence) == pytest.approx(above.high, rel=1e-9)


@given(st.data(), st.integers(1, 300), st.floats(0.001, 0.5))
def test_beyond_the_margin_is_scipys_exact_one_sided_test(
    data: st.DataObject, known: int, margin: float
) -> None:
    lost = data.draw(st.integers(0, known))
    expected = binomtest(lost, known, margin, alternative="greater").pvalue
    assert beyond_margin(lost, known, margin) == pytest.approx(expected, rel=1e-9)


@given(st.data(), st.integers(1, 300))
def test_the_share_lost_lies_below_its_bound(data: st.DataObject, known: int) -> None:
    lost = data.draw(st.integers(0, known))
    assert lost / known <= upper_bound(lost, known, 0.95)


def test_all_lost_leaves_nothing_to_be_bounded_from_above() -> None:
    assert upper_bound(10, 10, 0.95) == 1.0
    assert beyond_margin(10, 10, 0.5) == pytest.approx(0.5**10, rel=1e-9)


# Holm's correction


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_holm_never_goes_down_along_the_order_and_never_above_one() -> None:
    assert holm({"x": 0.9, "y": 0.8}) == {"y": 1.0, "x": 1.0}
    # 0.02 x 1 would be below 0.015 x 2: it is raised to it.
    assert holm({"x": 0.015, "y": 0.02}) == pytest.approx({"x": 0.03, "y": 0.03})


def test_holm_leaves_a_single_test_as_it_is() -> None:
    assert holm({"all": 0.007}) == {"all": 0.007}


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferronis(
    p_values: dict[str, float],
) -> None:
    adjusted = holm(p_values)
    assert adjusted.keys() == p_values.keys()
    by_p = [adjusted[name] for name in sorted(p_values, key=lambda name: p_values[name])]
    assert by_p == sorted(by_p)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, p * len(p_values))


# Decisions


def test_no_loss_among_299_known_probes_passes_a_margin_of_one_percent() -> None:
    verdict = judge(pairs(kept=299), 1.0, SPEC)
    assert verdict.decision == "pass"
    assert verdict.reasons == ()
    assert verdict.groups[0].upper_bound == pytest.approx(0.00997, abs=1e-5)


def test_no_loss_among_298_known_probes_is_too_few_to_tell() -> None:
    verdict = judge(pairs(kept=298), 1.0, SPEC)
    assert verdict.decision == "inconclusive"
    assert "More probes" in reasons(verdict)


def test_probes_that_were_never_known_do_not_count() -> None:
    verdict = judge(pairs(kept=298, ignorant=1000), 1.0, SPEC)
    assert verdict.decision == "inconclusive"
    assert verdict.groups[0].known == 298


def test_losses_that_chance_would_hardly_bring_are_refused() -> None:
    # Seven losses and no gain: p = 1/128 < 0.01, though 7 of 2000 is well inside the margin.
    verdict = judge(pairs(kept=1993, lost=7, group="all probes"), 1.0, SPEC)
    (everything, group) = verdict.groups
    assert everything.mcnemar_p == group.mcnemar_p == pytest.approx(1 / 128)
    # Held against two tests, 1/64 would not do; eight losses do.
    assert verdict.decision == "pass"
    assert judge(pairs(kept=1992, lost=8), 1.0, SPEC).decision == "refuse"


def test_as_many_gains_as_losses_are_no_damage() -> None:
    verdict = judge(pairs(kept=3000, lost=10, gained=10), 1.0, SPEC)
    assert verdict.decision == "pass"
    assert verdict.groups[0].share_lost == pytest.approx(10 / 3010)


def test_a_share_lost_that_is_surely_beyond_the_margin_is_refused_whatever_was_gained() -> None:
    verdict = judge(pairs(kept=900, lost=100, gained=200), 1.0, SPEC)
    assert verdict.groups[0].mcnemar_p > 0.99
    assert verdict.decision == "refuse"
    assert "100 were lost" in reasons(verdict)


def test_a_share_lost_that_may_be_on_either_side_of_the_margin_is_inconclusive() -> None:
    verdict = judge(pairs(kept=198, lost=2, gained=2), 1.0, SPEC)
    assert verdict.decision == "inconclusive"
    assert beyond_margin(2, 200, SPEC.margin) > 0.05 and upper_bound(2, 200, 0.95) > SPEC.margin


def test_a_base_that_knows_no_probe_leaves_nothing_to_decide_on() -> None:
    for known_nothing in ([], pairs(ignorant=50, gained=3)):
        verdict = judge(known_nothing, 1.0, SPEC)
        assert verdict.decision == "inconclusive"
        assert "knows none of the probes" in reasons(verdict)
        assert verdict.groups[0].share_lost is None
        assert verdict.groups[0].upper_bound is None


def test_too_few_edits_that_hold_are_refused_though_no_probe_was_lost() -> None:
    verdict = judge(pairs(kept=1000), 0.49, SPEC)
    assert verdict.decision == "refuse"
    assert reasons(verdict) == "Only 49% of the edits hold; the gate asks for 50%."
    assert judge(pairs(kept=1000), 0.5, SPEC).decision == "pass"


def test_every_ground_for_a_refusal_is_named() -> None:
    verdict = judge(pairs(kept=10, lost=90, group="near") + pairs(kept=1000), 0.0, SPEC)
    assert "edits hold" in verdict.reasons[0]
    assert "'all'" in verdict.reasons[1]
    assert "'near'" in verdict.reasons[2]


# Groups


def test_damage_to_one_group_is_refused_though_all_together_look_well() -> None:
    mixed = pairs(kept=5000, gained=9, group="unrelated") + pairs(kept=20, lost=10, group="same subject")
    verdict = judge(mixed, 1.0, SPEC)
    by_name = {group.group: group for group in verdict.groups}
    assert by_name["all"].decision == "pass"
    assert by_name["unrelated"].decision == "pass"
    assert by_name["same subject"].decision == "refuse"
    assert verdict.decision == "refuse"
    assert "'same subject'" in reasons(verdict)


def test_a_group_too_small_to_pass_alone_does_not_hold_the_whole_up() -> None:
    verdict = judge(pairs(kept=500, group="unrelated") + pairs(kept=5, group="same subject"), 1.0, SPEC)
    assert [group.decision for group in verdict.groups] == ["pass", "pass", "inconclusive"]
    assert verdict.decision == "pass"


def test_the_groups_are_all_first_and_then_each_in_order_of_appearance() -> None:
    verdict = judge(pairs(kept=2, group="b") + pairs(kept=3, group="a"), 1.0, SPEC)
    assert [(g.group, g.known) for g in verdict.groups] == [("all", 5), ("b", 2), ("a", 3)]


def test_holms_correction_is_taken_over_the_groups_and_all_of_them() -> None:
    # Alone, five losses give 1/32; among three tests the smallest counts three times.
    verdict = judge(pairs(lost=5, group="a") + pairs(kept=5, gained=1, group="b"), 1.0, SPEC)
    by_name = {group.group: group for group in verdict.groups}
    assert by_name["a"].mcnemar_p == pytest.approx(1 / 32)
    assert by_name["a"].holm_p == pytest.approx(3 / 32)
    assert by_name["all"].mcnemar_p == pytest.approx(7 / 64)
    assert by_name["all"].holm_p == pytest.approx(14 / 64)
    assert by_name["b"].holm_p == 1.0


def test_holms_correction_is_taken_of_losses_beyond_the_margin_too() -> None:
    # Two of six, alone, would be refused at a margin of 5 %; not as the worst of four groups that are tested.
    spec = GateSpec(margin=0.05)
    others = pairs(kept=400, group="unrelated") + pairs(kept=90, group="same relation")
    verdict = judge(pairs(kept=4, lost=2, group="same subject") + others, 1.0, spec)
    by_name = {group.group: group for group in verdict.groups}
    assert beyond_margin(2, 6, spec.margin) == pytest.approx(0.0328, abs=1e-4)
    assert by_name["same subject"].beyond_p == pytest.approx(4 * 0.0328, abs=4e-4)
    assert verdict.decision == "pass"
    assert judge(pairs(kept=3, lost=3, group="same subject") + others, 1.0, spec).decision == "refuse"


@given(st.integers(0, 200), st.integers(0, 40), st.integers(0, 40))
def test_one_more_loss_never_turns_a_refusal_into_a_pass(kept: int, lost: int, gained: int) -> None:
    spec = GateSpec(margin=0.05)
    if judge(pairs(kept, lost, gained), 1.0, spec).decision == "refuse":
        assert judge(pairs(kept, lost + 1, gained), 1.0, spec).decision == "refuse"


def test_a_verdict_survives_json_with_the_levels_it_was_reached_at() -> None:
    verdict = judge(pairs(kept=3, lost=1) + pairs(ignorant=2, group="near"), 0.2, SPEC)
    restored = json.loads(json.dumps(verdict.as_json()))
    assert restored["decision"] == "refuse"
    assert (restored["margin"], restored["alpha"], restored["confidence"]) == (0.01, 0.01, 0.95)
    assert restored["groups"][0]["lost"] == 1
    assert restored["groups"][2]["upper_bound"] is None
