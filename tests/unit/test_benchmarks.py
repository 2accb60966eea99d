"""What our published figures lean on: no evaluation words in an edit, no cell run twice, honest tables."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer

from benchmarks import quality_cells, quality_report, wording_overlap
from benchmarks.cells import Cells, code_digest, percent, share, table, write_section
from benchmarks.data import _SOURCES, DATA_NAMES, DataName, Row, read_rows, row_of, take
from benchmarks.engine import Choices, Engine, asked_of
from benchmarks.measures import Amounts, ability_items, known_kept
from benchmarks.quality import no_overlap
from benchmarks.quality_cells import BATCH, ROOT, SEQUENCE, Cell, Runner
from benchmarks.trex import (
    Memory,
    Relation,
    before_object,
    edit_of,
    mean,
    modifications,
    probe_of,
    training_heads,
)
from factedit.toy import toy_facts, write_toy_model
from factedit.wording import evaluation_prompts, training_prompts

RAW: dict[DataName, dict[str, Any]] = {
    "counterfact": {
        "case_id": 1,
        "prompt": "The mother tongue of S is",
        "target_new": "O",
        "subject": "S",
        "ground_truth": "EVALUATION truth",
        "rephrase_prompt": "EVALUATION paraphrase",
        "locality_prompt": "EVALUATION near",
        "locality_ground_truth": "EVALUATION near truth",
    },
    "zsre": {
        "subject": "S",
        "src": "What is the publisher of S?",
        "pred": "EVALUATION pred",
        "rephrase": "EVALUATION paraphrase",
        "alt": "O",
        "answers": ["EVALUATION truth"],
        "loc": "EVALUATION near",
        "loc_ans": "EVALUATION near truth",
        "cond": "EVALUATION cond",
    },
    "wikibigedit": {
        "prompt": "In which city did S die?",
        "target_new": "O",
        "subject": "S",
        "rephrase_prompt": "EVALUATION paraphrase",
        "locality_prompt": "EVALUATION near",
        "locality_ground_truth": "EVALUATION near truth",
    },
}


def row(place: int, subject: str | None = None, prompt: str | None = None) -> Row:
    name = f"S{place}"
    asked = prompt or f"The child of {name} is"
    return Row(f"r{place}", subject or name, asked, "O", "p", f"near {place}", False)


# Rows


@pytest.mark.parametrize("found", [0, 1])
def test_nothing_is_measured_if_a_trained_wording_is_a_tested_one(
    monkeypatch: pytest.MonkeyPatch, found: int
) -> None:
    def compare(data: Path) -> None:
        raise typer.Exit(found)

    monkeypatch.setattr(wording_overlap, "main", compare)
    with pytest.raises(typer.Exit) if found else nullcontext():
        no_overlap(Path())


@pytest.mark.parametrize("name", DATA_NAMES)
def test_no_evaluation_field_gets_into_an_edit(name: DataName) -> None:
    made = row_of(name, 7, RAW[name])
    assert "EVALUATION" not in str(made.edit)
    assert not any("EVALUATION" in prompt for prompt in training_prompts(made.edit, {}))
    assert (made.edit.subject, made.edit.new_object, made.edit.old_object) == ("S", "O", None)
    assert (made.edit.paraphrases, made.edit.neighbors, made.edit.relation) == ((), (), None)
    assert evaluation_prompts(made.edit, {}) == []
    assert (made.paraphrase, made.locality) == ("EVALUATION paraphrase", "EVALUATION near")


def test_a_row_that_contradicts_an_earlier_one_is_left_out(tmp_path: Path) -> None:
    one = RAW["counterfact"]
    rows = [one, {**one, "target_new": "P"}, {**one, "rephrase_prompt": "Q"}, {**one, "prompt": "S died in"}]
    path = tmp_path / _SOURCES["counterfact"].path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    assert [row.id[-1] for row in read_rows("counterfact", tmp_path)] == ["0", "2", "3"]


def test_prompts_are_reversed_only_where_their_form_allows_it() -> None:
    turned = [row_of(name, 0, RAW[name]).reversed for name in DATA_NAMES]
    assert turned == ["O is the mother tongue of", "O is the publisher of", None]


def test_questions_are_negated_otherwise_than_sentences() -> None:
    negated = [row_of(name, 0, RAW[name]).negated for name in DATA_NAMES]
    assert negated[0] == "It is not true that The mother tongue of S is"
    assert negated[1] == "Give a wrong answer to this question. What is the publisher of S?"


def test_unrelated_prompts_are_the_last_rows_and_never_a_batchs_own() -> None:
    rows = [row(place) for place in range(8)]
    rows += [row(8, subject="s0"), row(9, prompt=rows[1].prompt), row(10)]
    batch, others = take(rows, 0, 2, 4)
    assert [r.id for r in batch] == ["r0", "r1"]
    assert others == [rows[7].prompt, rows[10].prompt]


@pytest.mark.parametrize(("start", "size", "others"), [(0, 8, 3), (6, 2, 3), (-1, 2, 3), (0, 1, 11)])
def test_a_set_too_small_for_the_batch_and_the_others_is_refused(start: int, size: int, others: int) -> None:
    with pytest.raises(ValueError, match="rows hold no"):
        take([row(place) for place in range(10)], start, size, others)


def test_ability_items_are_many_and_their_choices_differ() -> None:
    items = ability_items()
    assert len(items) >= 60
    assert all(len(set(item.choices)) == len(item.choices) == 3 for item in items)
    assert len({item.prompt for item in items}) == len(items)


# Cells


def test_a_finished_cell_is_not_run_again_unless_asked(tmp_path: Path) -> None:
    cells, runs = Cells(tmp_path), [0]

    def run() -> dict[str, Any]:
        runs[0] += 1
        return {"run": runs[0]}

    asked = {"size": 1, "method": "auto"}
    assert cells.once(BATCH, asked, run) == {"run": 1}
    assert cells.once(BATCH, dict(reversed(asked.items())), run) == {"run": 1}
    assert cells.once(BATCH, {**asked, "size": 2}, run) == {"run": 2}
    assert cells.once(SEQUENCE, asked, run) == {"run": 3}
    assert Cells(tmp_path).once(BATCH, asked, run, again=True) == {"run": 4}
    assert [cell["found"]["run"] for cell in cells.all(BATCH)] == [2, 4]


def test_a_cell_that_fails_is_not_finished(tmp_path: Path) -> None:
    cells = Cells(tmp_path)

    def fail() -> dict[str, Any]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cells.once(BATCH, {}, fail)
    assert cells.get(BATCH, {}) is None
    assert cells.all(BATCH) == []


def test_published_cells_are_reported_from_any_machine_and_never_taken_for_finished(tmp_path: Path) -> None:
    published = tmp_path / "found"
    here = Cells(tmp_path / "here", published)
    here.put(BATCH, {"size": 1}, {"run": 1, "samples": ["long"]})
    here.put(BATCH, {"size": 2}, {"run": 2})
    here.publish(BATCH)
    there = Cells(tmp_path / "there", published)
    assert there.get(BATCH, {"size": 1}) is None
    there.put(BATCH, {"size": 2}, {"run": 3})
    there.publish(BATCH)
    assert [cell["found"] for cell in Cells(tmp_path / "new", published).all(BATCH)] == [
        {"run": 1},
        {"run": 3},
    ]
    with pytest.raises(ValueError, match="no published folder"):
        Cells(tmp_path / "here").publish(BATCH)


# Reports


def test_a_report_replaces_its_own_section_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text("# Results\n\nBefore.\n")
    write_section("quality", "first", file)
    write_section("trex", "other", file)
    write_section("quality", "second", file)
    assert file.read_text() == (
        "# Results\n\nBefore.\n\n<!-- quality:begin -->\n\nsecond\n\n<!-- quality:end -->\n\n"
        "<!-- trex:begin -->\n\nother\n\n<!-- trex:end -->\n"
    )
    file.write_text("<!-- quality:begin -->")
    with pytest.raises(ValueError, match="only one of the markers"):
        write_section("quality", "third", file)


def test_shares_are_shown_as_percentages_and_none_of_none_as_a_dash() -> None:
    assert share([True, False, True]) == [2, 3]
    assert [percent([2, 3]), percent([0, 0]), percent(None)] == ["66.7%", "-", "-"]
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def put(
    cells: Cells,
    what: dict[str, Any],
    efficacy: list[int],
    kind: str = BATCH,
) -> None:
    found: dict[str, Any] = {key: [1, 2] for key in quality_report.ANSWERS}
    found |= {"efficacy": efficacy, "device": "cpu", "threads": 1, "bytes": 2_500_000, "steps": 12}
    cell = {
        "data": "zsre",
        "method": "auto",
        "size": 10,
        "start": 0,
        "asked": {},
        "batches": 1,
        "amounts": {"others": 5},
    }
    cells.put(kind, cell | what, found)


def test_a_quality_report_has_a_row_a_method_and_the_latest_figures(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells")
    put(cells, {"resolved": "old"}, [1, 10])
    put(cells, {"resolved": "new"}, [9, 10])
    put(cells, {"amounts": {"others": 1}}, [2, 10])
    put(cells, {"method": "memit"}, [4, 10])
    put(cells, {"asked": {"radius": 0.01}}, [5, 10])
    put(cells, {"batches": 3}, [6, 10], SEQUENCE)
    text = quality_report.report(cells, tmp_path / "plots")
    assert "| 10 | auto | 90.0% | 50.0% |" in text
    assert "10.0%" not in text and "20.0%" not in text
    assert "| 10 | memit | 40.0% |" in text
    assert "| 10 | auto | radius 0.01 | 50.0% |" in text
    assert "| 3 x 10 | auto | - |" in text
    assert "†" not in text.replace("† measured", "")
    assert "![zsre, 10 edits](plots/quality-zsre-10.svg)" in text
    assert (tmp_path / "plots/quality-zsre-10.svg").read_text().count("memit") >= 1


def test_figures_of_an_earlier_state_of_the_code_are_marked(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells")
    put(cells, {}, [1, 2])
    (path,) = (tmp_path / "cells" / BATCH).glob("*.json")
    path.write_text(path.read_text().replace(code_digest(), "earlier"))
    assert "| 10 | auto † |" in quality_report.report(cells, tmp_path / "plots")


def test_what_is_asked_for_on_the_command_line_reaches_the_method() -> None:
    asked = asked_of("3,4", "l_2", 0.5, ["damping=0.01", "parameters=mlp"])
    choices = Choices.of("auto", asked)
    assert choices.blocks == [3, 4]
    assert (choices.constraint.norm, choices.constraint.radius) == ("l_2", 0.5)
    assert (choices.method.damping, choices.method.parameters) == (0.01, "mlp")
    with pytest.raises(ValueError, match="no_such"):
        Choices.of("auto", {"no_such": 1})


# T-REx

CITY = Relation("P1", "[X] is in", ("[X] lies in", "One finds [X] in"), {"Rome": 8, "Oslo": 1, "Kyiv": 1})


def test_a_pattern_is_used_only_if_the_object_ends_it_and_the_subject_comes_before() -> None:
    assert before_object("[X] was born in  [Y] .", at_end=True) == "[X] was born in"
    assert before_object("[X] is [Y] citizen.", at_end=True) is None
    assert before_object("[X] is [Y] citizen.", at_end=False) == "[X] is"
    assert before_object("[Y] owns [X] .", at_end=False) is None


def test_the_lama_template_is_never_trained_on() -> None:
    heads = ["[X] is in", "[x] IS in", None, *(f"[X] {n}" for n in range(6)), "[X] 0"]
    assert training_heads(heads, "[X] is in") == ("[X] 0", "[X] 1", "[X] 2", "[X] 3")
    edit = edit_of(Memory("1", "P1", "S", "Rome"), "Oslo", CITY)
    assert training_prompts(edit, {})[:2] == ["S lies in", "One finds S in"]
    assert probe_of(Memory("1", "P1", "S", "Rome"), "Oslo", CITY).prompt not in training_prompts(edit, {})


def test_new_objects_are_others_of_the_relation_by_frequency_and_the_same_each_time() -> None:
    known = [Memory(str(n), "P1", f"S{n}", "Oslo") for n in range(400)]
    chosen = modifications(known, {"P1": CITY}, 300, seed=1)
    assert len({memory.id for memory, _ in chosen}) == 300
    assert {new for _, new in chosen} == {"Rome", "Kyiv"}
    assert sum(new == "Rome" for _, new in chosen) > 230
    assert chosen == modifications(known, {"P1": CITY}, 300, seed=1)
    assert len(modifications(known[:5], {"P1": CITY}, 300, seed=1)) == 5
    assert modifications(known, {"P1": replace(CITY, training=())}, 300, seed=1) == []


def test_the_mean_is_of_both_accuracies_however_many_facts_each_has() -> None:
    assert mean([1, 2], [10, 10]) == 0.75
    assert mean([1, 2], [0, 0]) is None


# All of it, on the toy model


def write_rows(data: Path) -> None:
    facts = toy_facts()[:9]
    rows = [
        {
            "subject": fact.subject,
            "prompt": f"The capital of {fact.subject} is",
            "target_new": facts[place - 1].object,
            "rephrase_prompt": f"{fact.subject} has its capital in",
            "locality_prompt": f"The capital of {facts[place - 2].subject} is",
        }
        for place, fact in enumerate(facts)
    ]
    (data / "counterfact").mkdir(parents=True)
    (data / "counterfact/counterfact.json").write_text(json.dumps(rows))
    (data / "wikitext2").mkdir()
    (data / "wikitext2/valid.txt").write_text(" ".join(row["prompt"] for row in rows) * 50)


def test_cells_on_the_toy_model(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "model", steps=60)
    write_rows(tmp_path / "data")
    engine = Engine(tmp_path / "model", tmp_path / "bench", "cpu")
    runner = Runner(engine, Amounts(others=4, probes=10, tokens=256), data=tmp_path / "data")
    nothing = runner.run(Cell("counterfact", ROOT, 2))
    assert nothing["others_clause"] == [4, 4] and nothing["kl"] == 0.0 and nothing["bytes"] == 0
    assert nothing["ability"] == nothing["ability_root"] and nothing["ability"][1] >= 60

    asked = {"max_steps": 60, "learning_rate": 0.01, "radius": 0.5, "anchors": {"count": 0, "weight": 0}}
    found = runner.run(Cell("counterfact", "constrained_ftm", 2, asked=asked))
    assert found["efficacy"] == [2, 2] and found["efficacy_forced"] == [2, 2]
    assert found["kl"] > 0 and found["bytes"] > 0 and 0 < found["max_abs_change"] <= 0.5
    noted = runner.run(Cell("counterfact", "in_context", 2))
    assert noted["bytes"] > 0 and noted["kl"] == 0.0

    last = Runner(engine, Amounts(4, 10, 256), data=tmp_path / "data", say=lambda _: None)
    sequence = last.run(Cell("counterfact", "constrained_ftm", 2, asked=asked, batches=2))
    assert sequence["first_then"] == [2, 2] and sequence["efficacy"][1] == 4
    assert sequence == last.run(Cell("counterfact", "constrained_ftm", 2, asked=asked, batches=2))
    assert "error" in runner.run(Cell("counterfact", "constrained_ftm", 2, asked={"blocks": [99]}))
    assert known_kept(engine, {}, 5, set())[1] <= 5


def test_an_edit_is_kept_until_its_cell_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_model(tmp_path / "model", steps=60)
    write_rows(tmp_path / "data")
    engine = Engine(tmp_path / "model", tmp_path / "bench", "cpu")
    said: list[str] = []
    runner = Runner(engine, Amounts(4, 10, 256), data=tmp_path / "data", again=True, say=said.append)
    cell = Cell("counterfact", "constrained_ftm", 2, asked={"max_steps": 2, "anchors": {"count": 0}})

    def cut_off(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(quality_cells, "measure_all", cut_off)
        runner.run(cell)
    assert [line for line in said if line.endswith("editing")] == [f"{cell}: editing"]
    said.clear()
    assert runner.run(cell)["steps"] == 2
    assert said == []
    runner.run(cell)  # it was finished: asked for again, it is edited again
    assert [line for line in said if line.endswith("editing")] == [f"{cell}: editing"]
