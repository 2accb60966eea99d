"""What a caller may combine, and what is said about the rest."""

from typing import Any

import pytest
from pydantic import ValidationError

from factedit.methods import EDITORS
from factedit.presets import PRESETS, misfit
from factedit.specs import FROM_ANY_STATE, IN_EPOCHS, ConstraintSpec, GateSpec, MethodSpec
from service.api.schemas.edits import EditsIn

BODY: dict[str, Any] = {"model": "m", "edits": [{"subject": "Nauru", "prompt": "x", "new_object": "y"}]}


def test_every_method_has_an_editor_and_a_preset() -> None:
    names = set(MethodSpec.model_json_schema()["properties"]["name"]["enum"])
    assert names == EDITORS.keys() == PRESETS.keys()
    assert names >= FROM_ANY_STATE | IN_EPOCHS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_method_by_its_name_alone_survives_being_stored(name: Any) -> None:
    method = MethodSpec(name=name)
    assert MethodSpec.model_validate_json(method.model_dump_json()) == method
    assert misfit(method, ConstraintSpec()) is None
    assert EditsIn.model_validate({**BODY, "method": {"name": name}}).method == method


def test_what_goes_by_epochs_is_not_cut_short_after_120_steps() -> None:
    assert MethodSpec(name="ftm").max_steps == 120
    assert MethodSpec(name="loc_ft").max_steps == 5000
    assert MethodSpec(name="loc_ft", max_steps=7).max_steps == 7
    assert MethodSpec(name="retrain").learning_rate == 5e-5
    assert (PRESETS["retrain"].epochs, PRESETS["loc_ft"].epochs) == (5, 25)
    assert {n for n, preset in PRESETS.items() if preset.epochs is not None} == set(IN_EPOCHS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "ftm", "unmodified_share": 0.5}, "unmodified_share is for `fta`"),
        ({"name": "fta", "unmodified_share": 1.0}, "less than or equal to 0.95"),
        ({"name": "fta", "unmodified_share": 0.0}, "greater than 0"),
        ({"name": "fta", "unmodified_share": float("nan")}, "unmodified_share"),
        ({"name": "ftm", "epochs": 3}, "does not go by epochs; give max_steps"),
        ({"name": "memit", "initial": "relation_facts"}, "starts from the weights as given"),
        ({"name": "retrain", "initial": "relation_facts"}, "initial is for constrained_ftm, crisp"),
        ({"name": "ftm", "initial": "scratch"}, "'given' or 'relation_facts'"),
        ({"name": "crisp", "parameters": "all"}, "`crisp` moves matrices only"),
        ({"name": "crisp", "damping": 1.0}, "give a damping below 1"),
        ({"name": "ft_x"}, "'ft_l', 'ft_m'"),
        ({"name": ["ft_l"]}, "name"),
    ],
)
def test_what_does_not_belong_to_a_method_is_refused_in_plain_words(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        MethodSpec.model_validate(options)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["ftm", "retrain", "memit", "kv_memory"])
@pytest.mark.parametrize("constraint", [{"norm": "fisher"}, {"norm": "l_2", "radius": 1.0}, {"radius": 0.1}])
def test_a_ball_that_the_method_would_ignore_is_refused_before_there_is_a_job(
    name: str, constraint: dict[str, Any]
) -> None:
    body = {**BODY, "method": {"name": name}, "constraint": constraint}
    with pytest.raises(
        ValidationError, match="takes no constraint; leave it out, or use one of auto"
    ) as refused:
        EditsIn.model_validate(body)
    assert refused.value.errors()[0]["loc"] == ("constraint",)


@pytest.mark.parametrize(
    ("name", "constraint"), [("ft_l", {"radius": 0.1}), ("auto", {"norm": "none", "radius": 0.1})]
)
def test_a_radius_of_no_ball_is_refused(name: str, constraint: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="A radius needs a norm"):
        EditsIn.model_validate({**BODY, "method": {"name": name}, "constraint": constraint})


@pytest.mark.parametrize("name", ["ftm", "memit", "auto"])
def test_no_ball_may_be_asked_for_by_name(name: str) -> None:
    EditsIn.model_validate({**BODY, "method": {"name": name}, "constraint": {"norm": "none"}})


@pytest.mark.parametrize(
    ("gate", "looser"),
    [
        ({}, {}),
        ({"margin": 0.01, "alpha": 0.2, "probes": 900, "min_efficacy": 0.9, "confidence": 0.99}, {}),
        ({"margin": 0.5, "probes": 900}, {"margin": 0.5}),
        (
            {"alpha": 0.001, "probes": 10, "min_efficacy": 0.0, "confidence": 0.9},
            {"alpha": 0.001, "probes": 10, "min_efficacy": 0.0, "confidence": 0.9},
        ),
    ],
)
def test_a_gate_tells_in_what_it_is_looser_than_usual(gate: dict[str, Any], looser: dict[str, Any]) -> None:
    assert GateSpec.model_validate(gate).looser() == looser


@pytest.mark.parametrize("name", ["constrained_ftm", "fta", "crisp", "ft_l", "ft_m", "loc_ft"])
@pytest.mark.parametrize("norm", ["l_inf", "l_2", "fisher", "none", None])
def test_every_ball_has_a_usual_radius_where_it_may_be_chosen(name: Any, norm: Any) -> None:
    assert misfit(MethodSpec(name=name), ConstraintSpec(norm=norm)) is None
