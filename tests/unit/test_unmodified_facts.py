"""What fine-tuning takes from unmodified facts: examples beside the edits, a Fisher ball, curvature."""

from collections.abc import Mapping

import pytest
import torch

from factedit.constraints import distance_fisher
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.fisher import fisher_diagonal
from factedit.holding import Anchors, holding, next_token_log_probabilities
from factedit.kronecker import Factors, kronecker_factors
from factedit.methods import step_rules
from factedit.models import LanguageModel
from factedit.overlay import applied, root_digest
from factedit.presets import anchors_of
from factedit.prompts import answer_example, next_token_example
from factedit.relations import builtin_catalogue, is_probe
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, ConstraintSpec, MethodName, MethodSpec
from factedit.task import EditingError, plan
from factedit.unmodified import facts_by_prompt, unmodified_examples
from tests.support.overlays import same
from tests.support.tiny_models import CITIES, COUNTRIES, LAYERS, PROMPT
from tests.support.tuned import ANCHORS, EDITS, NEW, edited, known_capitals, trained_batches

small_catalogue = pytest.fixture(known_capitals, autouse=True)
batches = pytest.fixture(trained_batches)


# Trained on beside the edits: fta, retrain


@pytest.mark.parametrize("share", [None, 0.25, 0.5, 0.8])
def test_fta_mixes_the_asked_share(
    llama: LanguageModel, batches: list[tuple[list[int], list[int]]], share: float | None
) -> None:
    many = [Edit(str(i), f"{COUNTRIES[i % 6]} {i}", "Rome", relation="capital") for i in range(12)]
    edited(llama, "fta", edits=many, method={"unmodified_share": share, "max_steps": 4})
    wanted = 0.5 if share is None else share
    assert batches
    for chosen, beside in batches:
        assert len(beside) == round(len(chosen) * wanted / (1 - wanted))


def test_fta_teaches_the_unmodified_facts_their_true_objects(llama: LanguageModel) -> None:
    result = edited(llama, "fta", method={"unmodified_share": 0.8, "max_steps": 500})
    examples = [
        answer_example(llama, PROMPT.format(c), o) for c, o in zip(COUNTRIES[2:], CITIES[2:], strict=True)
    ]
    with applied(llama, result.tensors):
        assert sum(holding(llama, examples)) >= 3
    assert result.chosen["unmodified"] == len(ANCHORS)


def test_fta_has_no_ball_unless_one_is_given(llama: LanguageModel) -> None:
    assert edited(llama, "fta").chosen["norm"] == "none"
    bounded = edited(llama, "fta", constraint=ConstraintSpec(norm="l_inf", radius=0.01))
    assert bounded.metrics["max_abs_change"] <= 0.01 * (1 + 1e-5)


def test_a_prompt_of_no_known_fact_keeps_the_roots_own_next_token(lm: LanguageModel) -> None:
    prompts = ["The people of Norway speak", ANCHORS[0], "Rome lies in"]
    found = unmodified_examples(lm, prompts)
    assert found[1] == answer_example(lm, ANCHORS[0], "Berlin")
    for prompt, example in ((prompts[0], found[0]), (prompts[2], found[2])):
        ids = list(lm.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            assert example.targets == (int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()),)


@pytest.mark.parametrize("name", ["fta", "retrain"])
def test_without_unmodified_facts_it_is_refused(llama: LanguageModel, name: MethodName) -> None:
    with pytest.raises(EditingError, match="give anchors"):
        edited(llama, name, anchors=[])
    with pytest.raises(EditingError, match="give anchors"):
        edited(llama, name, method={"anchors": AnchorSpec(count=0)})


def test_retrain_may_move_every_block(llama: LanguageModel) -> None:
    result = edited(llama, "retrain")
    assert {llama.block_of(name) for name in result.tensors} == set(range(LAYERS))
    assert (result.chosen["norm"], result.chosen["unmodified"]) == ("none", len(ANCHORS))


def test_retrain_goes_over_edits_and_unmodified_facts_alike(
    llama: LanguageModel, batches: list[tuple[list[int], list[int]]]
) -> None:
    result = edited(llama, "retrain")
    modified = result.chosen["examples"]
    assert len(batches) == 5  # epochs of one batch each
    for chosen, beside in batches:
        assert (sorted(chosen), sorted(beside)) == (list(range(modified)), list(range(len(ANCHORS))))


def test_retrain_starts_at_the_root_whatever_the_parent(llama: LanguageModel) -> None:
    parent = edited(llama, "ft_m").tensors
    again = edited(llama, "retrain", parent=parent)
    assert same(again.tensors, edited(llama, "retrain").tensors)
    with pytest.raises(EditingError, match=r"changed blocks \[1\]"):
        edited(llama, "retrain", [2], parent=parent)


def test_no_probe_is_ever_trained_on() -> None:
    known = facts_by_prompt(builtin_catalogue())
    assert len(known) > 1000
    assert not [fact for fact in known.values() if is_probe(fact.subject)]
    scored = {
        prompt
        for fact in known.values()
        for prompt in builtin_catalogue().relations[fact.relation].evaluation_prompts(fact.subject)
    }
    assert not scored & known.keys()


# The Fisher ball


@pytest.mark.parametrize("name", ["constrained_ftm", "fta", "crisp", "ft_m"])
def test_an_edit_stays_inside_the_fisher_ball(lm: LanguageModel, name: MethodName) -> None:
    before = root_digest(lm)
    result = edited(lm, name, [1, 2], constraint=ConstraintSpec(norm="fisher", radius=0.05))
    assert root_digest(lm) == before
    names = plan(lm, MethodSpec(name=name), [1, 2], ConstraintSpec()).names
    fisher = fisher_diagonal(lm, names, unmodified_examples(lm, ANCHORS), 1)
    roots = {n: lm.tensors[n].data for n in result.tensors}
    assert 0 < distance_fisher(result.tensors, roots, fisher) <= 0.05 * (1 + 1e-4)
    assert result.metrics["fisher_norm"] == pytest.approx(
        distance_fisher(result.tensors, roots, fisher), rel=1e-3
    )


def test_the_fisher_information_is_the_roots_whatever_the_parent(llama: LanguageModel) -> None:
    ball = ConstraintSpec(norm="fisher", radius=0.05)
    parent = edited(llama, "ftm", [0]).tensors
    child = edited(llama, "constrained_ftm", [1], parent=parent, ledger=EDITS, edits=[], constraint=ball)
    assert all(torch.equal(child.tensors[name], parent[name]) for name in parent)
    if moved := {n: t for n, t in child.tensors.items() if n not in parent}:
        fisher = fisher_diagonal(llama, llama.block_tensors(1, "mlp"), unmodified_examples(llama, ANCHORS), 1)
        assert distance_fisher(moved, {n: llama.tensors[n].data for n in moved}, fisher) <= 0.05 * (1 + 1e-4)


def test_the_fisher_ball_needs_unmodified_facts(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="`fisher` is measured on unmodified facts; give anchors"):
        edited(llama, "constrained_ftm", anchors=[], constraint=ConstraintSpec(norm="fisher"))
    assert anchors_of(MethodSpec(name="loc_ft"), "fisher").count > 0
    assert anchors_of(MethodSpec(name="loc_ft"), "l_inf").count == 0
    assert anchors_of(MethodSpec(name="loc_ft", initial="relation_facts"), "l_inf").count > 0


# Kept out of directions of high curvature: crisp


@pytest.mark.parametrize(
    ("anchors", "texts"), [(ANCHORS, []), ([], ["Rome lies in Italy", "Oslo lies in Norway"])]
)
def test_crisp_is_measured_on_anchors_and_running_text_whichever_there_are(
    llama: LanguageModel, anchors: list[str], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []

    def watched(lm: LanguageModel, names: list[str], texts: list[str], *rest: int) -> Mapping[str, Factors]:
        read.append(texts)
        return kronecker_factors(lm, names, texts, *rest)

    monkeypatch.setattr(step_rules, "kronecker_factors", watched)
    assert edited(llama, "crisp", anchors=anchors, texts=RunningText.of(llama, texts)).tensors
    assert read == [[*texts, *anchors]]


def test_crisp_is_refused_where_there_are_neither(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="`crisp` needs unmodified facts to measure"):
        edited(llama, "crisp", anchors=[])


def test_running_text_is_asked_for_by_methods_that_read_it(llama: LanguageModel) -> None:
    asked = {name: plan(llama, MethodSpec(name=name), "auto", ConstraintSpec()).reads_texts for name in NEW}
    assert [name for name, reads in asked.items() if reads] == ["crisp"]


def test_the_more_curvature_is_left_open_the_more_crisp_bends_what_is_unmodified(
    llama: LanguageModel,
) -> None:
    def bent(damping: float) -> float:
        made = edited(llama, "crisp", method={"damping": damping, "learning_rate": 2e-3, "max_steps": 1})
        with applied(llama, made.tensors), torch.no_grad():
            return float(kept.divergence(range(len(ANCHORS))))

    examples = [next_token_example(llama, prompt) for prompt in ANCHORS]
    held = ExampleSet(llama, examples, list(range(len(ANCHORS))), 0)
    kept = Anchors(held, next_token_log_probabilities(held))
    assert bent(0.02) < bent(0.3) < bent(0.99)
