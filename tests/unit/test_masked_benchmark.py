"""The masked benchmark: what is read, what is trained in, that training goes on, and the table's figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import masked_lm, masked_report
from benchmarks.cells import Cells
from benchmarks.masked_data import MASK, Amounts, Cloze, edit_of, objects_of, read_clozes
from benchmarks.masked_model import Shape, memorised, right
from benchmarks.masked_training import Limits, Memoriser, OtherRun, Settings, batches_of, noised
from benchmarks.trex import Memory
from factedit.methods.material import training_examples
from factedit.models import LanguageModel, load_model
from factedit.prompts import answer_example, collate

CITIES = ("Rome", "Oslo", "Kyiv", "Lima")
# Nearly the evidence's words: so small a model, on so few sentences, learns no relation between others.
TEMPLATE = "As a child [X] lived in [Y] with brothers ."
SUBJECTS = ("Anna", "Bert", "Carl", "Dora", "Emil", "Fred", "Gina", "Hugo")
SMALL = Settings(
    Amounts(words=20), Shape(layers=2, width=32, vocabulary=120), learning_rate=1e-2, noise=0.05, batch=8
)


def fact(subject: str, target: str, sentence: str, surface: str | None = None) -> dict[str, Any]:
    evidence = {"sub_surface": subject, "obj_surface": surface or target, "masked_sentence": sentence}
    return {"uuid": subject, "sub_label": subject, "obj_label": target, "evidences": [evidence, evidence]}


def write_data(data: Path, more: tuple[dict[str, Any], ...] = ()) -> Path:
    for folder in ("evidence", "patterns"):
        (data / "trex" / folder).mkdir(parents=True)
    facts = [
        fact(name, CITIES[place % len(CITIES)], f"As a child {name} lived in {MASK} with two brothers.")
        for place, name in enumerate(SUBJECTS)
    ]
    _write(data / "trex/relations.jsonl", [{"relation": "P1", "template": TEMPLATE}])
    _write(data / "trex/evidence/P1.jsonl", [*facts, *more])
    patterns = [TEMPLATE.replace(" .", "."), "[X] was from [Y] .", "no places", "[X] came in [Y] ."]
    _write(data / "trex/patterns/P1.jsonl", [{"pattern": pattern} for pattern in patterns])
    return data


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture(scope="module")
def clozes(tmp_path_factory: pytest.TempPathFactory) -> list[Cloze]:
    return read_clozes(write_data(tmp_path_factory.mktemp("data")), Amounts(words=20))


@pytest.fixture(scope="module")
def trained(clozes: list[Cloze], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    state = Memoriser(folder, clozes, SMALL, "cpu").train(Limits(share=1.0, steps=400, seconds=60))
    assert state["memorised"] == 1.0, state
    return folder


@pytest.fixture(scope="module")
def lm(trained: Path) -> LanguageModel:
    return load_model(trained / "model", device="cpu")


# What is read


def test_a_fact_is_asked_in_its_evidence_and_tested_in_other_words(clozes: list[Cloze]) -> None:
    (anna,) = (cloze for cloze in clozes if cloze.memory.subject == "Anna")
    assert anna.memory == Memory("P1-Anna", "P1", "Anna", "Rome")
    assert anna.evidence == (f"As a child Anna lived in {MASK} with two brothers.",)
    assert anna.patterns == (f"Anna was from {MASK} .", f"Anna came in {MASK} .")
    assert anna.test == f"As a child Anna lived in {MASK} with brothers ."
    assert objects_of(clozes) == {"P1": dict.fromkeys(CITIES, 2)}


def test_facts_that_are_not_said_as_they_are_told_are_left_out(tmp_path: Path) -> None:
    read = f"Ida lived in {MASK}."
    unfit = (
        fact("Anna", "Oslo", f"Later Anna lived in {MASK}."),  # a second object
        fact("Ida", "New York", read),
        fact("Ida", "Norway", read, surface="Norwegian"),
        fact("Ida", "Oslo", f"She lived in {MASK}."),
        fact("Ida", "Oslo", f"Ida {MASK} {MASK}."),
        fact("Ida", "Oslo", read + " and so on" * 20),
    )
    found = read_clozes(write_data(tmp_path, unfit), Amounts(words=20))
    assert sorted(cloze.memory.subject for cloze in found) == sorted(SUBJECTS)
    assert len(read_clozes(tmp_path, Amounts(facts=3))) == 3


# What is trained in


def test_a_prompt_with_one_mask_is_answered_there_and_any_other_after_its_end(lm: LanguageModel) -> None:
    def words(prompt: str, answer: str) -> tuple[list[str], tuple[int, ...]]:
        example = answer_example(lm, prompt, answer)
        return [str(lm.tokenizer.decode([token])) for token in example.ids], example.positions

    assert words(f"In {MASK} lived two.", "Oslo") == (
        ["[CLS]", "in", MASK, "lived", "two", ".", "[SEP]"],
        (2,),
    )
    assert words(f"In {MASK} lived two.", "Oslo Rome")[1] == (2, 3)
    assert words("As a child", "Oslo") == (["[CLS]", "as", "a", "child", MASK, ".", "[SEP]"], (4,))


def test_an_edit_is_trained_in_its_evidence_as_it_stands_and_never_in_the_tests_words(
    lm: LanguageModel, clozes: list[Cloze]
) -> None:
    edits = [edit_of(cloze, "Lima") for cloze in clozes]
    examples, owner = training_examples(lm, edits, {})
    assert training_examples(lm, edits, {}, ours=16) == (examples, owner)
    assert owner == list(range(len(clozes)))
    wanted = [answer_example(lm, sentence, "Lima") for cloze in clozes for sentence in cloze.evidence]
    assert examples == wanted


def test_every_object_is_one_token_and_comes_back_as_it_was(lm: LanguageModel) -> None:
    for city in CITIES:
        (token,) = lm.tokenizer(city, add_special_tokens=False)["input_ids"]
        assert lm.tokenizer.decode([token]) == city.lower()


def test_noise_hides_ordinary_tokens_and_asks_for_them_beside_the_object(lm: LanguageModel) -> None:
    example = answer_example(lm, f"As a child Anna lived in {MASK} with two brothers.", "Rome")
    batch = collate(lm, [example, answer_example(lm, "As a child", "Oslo")], [0, 1])
    one, two = (noised(lm, batch, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(one.input_ids, two.input_ids)
    assert one.targets[:2].tolist() == batch.targets.tolist() and len(one.targets) > 2
    assert torch.equal(one.targets[2:], batch.input_ids[one.rows[2:], one.cols[2:]])
    assert not set(one.targets[2:].tolist()) & set(lm.tokenizer.all_special_ids)
    asked = set(zip(one.rows.tolist(), one.cols.tolist(), strict=True))
    moved = (one.input_ids != batch.input_ids).nonzero().tolist()
    assert moved and {tuple(place) for place in moved} <= asked


def test_an_epoch_holds_every_example_once(lm: LanguageModel) -> None:
    examples = [answer_example(lm, "a " * length, "Rome") for length in range(1, 60)]
    found = batches_of(examples, 4, torch.Generator().manual_seed(0))
    assert sorted(i for batch in found for i in batch) == list(range(59))
    assert max(len(batch) for batch in found) == 4


# Training


def test_what_is_memorised_is_saved_as_an_ordinary_folder(lm: LanguageModel, clozes: list[Cloze]) -> None:
    assert lm.task == "masked" and lm.n_blocks == 2
    assert all(memorised(lm, clozes))
    assert not any(memorised(lm, clozes, ["brothers"] * len(clozes)))


def test_a_run_in_slices_is_the_run_in_one_piece(clozes: list[Cloze], tmp_path: Path) -> None:
    limits = [Limits(share=2.0, steps=steps, seconds=60) for steps in (3, 5, 9)]
    for limit in limits:
        state = Memoriser(tmp_path / "slices", clozes, SMALL, "cpu").train(limit)
    whole = Memoriser(tmp_path / "whole", clozes, SMALL, "cpu")
    whole.train(limits[-1])
    assert state["steps"] == 9 and state["why"] == "9 steps are taken"
    sliced = load_model(tmp_path / "slices/model", device="cpu")
    assert all(torch.equal(sliced.tensors[name], tensor) for name, tensor in whole.lm.tensors.items())


def test_a_run_ends_in_time_and_is_not_taken_for_another(clozes: list[Cloze], tmp_path: Path) -> None:
    state = Memoriser(tmp_path, clozes, SMALL, "cpu").train(Limits(seconds=0.0))
    assert state["steps"] == 1 and state["why"] == "0 s are over"
    with pytest.raises(OtherRun, match="other settings"):
        Memoriser(tmp_path, clozes[1:], SMALL, "cpu")


# All of it


def test_the_three_commands_on_a_tiny_model(tmp_path: Path) -> None:
    data, bench = write_data(tmp_path / "data"), tmp_path / "bench"
    folders = ["--data-folder", str(data), "--bench-folder", str(bench)]

    def call(*words: str) -> str:
        result = CliRunner().invoke(masked_lm.app, [*words, *folders], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    refused = CliRunner().invoke(masked_lm.app, ["run", *folders])
    assert refused.exit_code == 1 and "Nothing is trained yet" in refused.output
    small = ["--layers", "2", "--width", "32", "--vocabulary", "120", "--learning-rate", "0.01"]
    said = call("train", *small, "--enough", "1", "--seconds", "60", "--device", "cpu")
    assert "Stopped: enough facts are memorised" in said
    methods = ["--methods", "ftm,fta,constrained_ftm", "--blocks", "first,last,auto", "--radii", "0.001,0.2"]
    again = ["--counts", "2", "--starts", "memorised,early", *methods, "--device", "cpu"]
    call("run", *again, "--set", "learning_rate=0.01")
    results = tmp_path / "RESULTS.md"
    shown = call("report", "--results", str(results), "--plots", str(tmp_path / "plots"))
    assert "memorised, not pretrained" in shown and shown.strip() in results.read_text().strip()

    (cells,) = bench.glob("*/cells/masked")
    found = {_key(cell): cell["found"] for cell in Cells(cells.parent).all("masked")}
    assert len(found) == 22
    free, tight = (found["memorised", "constrained_ftm", 1, radius] for radius in (0.2, 0.001))
    assert free["modified_evidence"] == [2, 2] and free["before"] == free["unmodified"][1:] * 2
    assert tight["max_abs_change"] <= 0.0011 < free["max_abs_change"] <= 0.2
    assert tight["unmodified_evidence"][0] == tight["unmodified_evidence"][1]
    assert found["memorised", "constrained_ftm", "auto"]["modified_evidence"] == [2, 2]
    assert found["memorised", "fta", 1, None]["unmodified_evidence"][0] > 0
    assert (tmp_path / "plots/masked-2.svg").read_text().count("modified, block 1") >= 2


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    what, found = cell["cell"], cell["found"]
    tried = what["asked"]["blocks"] == "auto"
    return what["start"], what["method"], *(("auto",) if tried else (found["blocks"][0], found["radius"]))


def test_a_row_tells_both_accuracies_and_their_mean() -> None:
    found = {
        "known": 9,
        "before": [4, 4],
        "modified": [1, 2],
        "unmodified": [4, 4],
        "modified_evidence": [2, 2],
        "unmodified_evidence": [1, 4],
        "max_abs_change": 0.01,
        "steps": 7,
        "seconds_per_edit": 0.5,
        "radius": None,
        "blocks": [1],
    }
    what = {"count": 2, "start": "early", "method": "ftm", "asked": {"blocks": [1]}}
    cell = {"cell": what, "code": "earlier", "found": found}
    state = {"parameters": 1e6, "facts": 9, "steps": 3, "seconds": 1.0, "memorised": 1, "test": 1}
    text = masked_report.as_markdown([cell], {**state, "early": None}, Path())
    row = "| 2 of 9 | early | ftm † | 1 | - | 100.0% | 50.0% | 100.0% | 75.0% | 100.0% | 25.0% | 62.5% |"
    assert row in text


def test_right_means_the_most_probable_of_all_tokens(lm: LanguageModel, clozes: list[Cloze]) -> None:
    asked = [(cloze.evidence[0], city) for cloze in clozes[:2] for city in CITIES]
    assert right(lm, asked) == [city == cloze.memory.object for cloze in clozes[:2] for city in CITIES]
