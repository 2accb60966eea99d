"""The score work: what versions answer does not depend on what is kept between jobs, nor on what was said."""

from typing import Any

import pytest
import torch

from factedit.checkpoint_store import CheckpointStore
from factedit.facts import Edit, Probe
from factedit.models import load_model
from factedit.prefix_states import PrefixStates
from factedit.relations import builtin_catalogue
from factedit.toy import toy_facts, write_toy_model
from workers.bench import Bench
from workers.orders import ScoreDone, ScoreOrder
from workers.score_process import score_work
from workers.work import Tell

RELATIONS = {"capital": builtin_catalogue().relations["capital"]}


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> ScoreOrder:
    """A toy root and a version of it that answers some things differently."""
    folder = tmp_path_factory.mktemp("store")
    write_toy_model(folder / "model")
    store = CheckpointStore(folder / "store")
    digest = store.publish_root(folder / "model")
    lm = load_model(folder / "model", device="cpu")
    torch.manual_seed(0)
    roots = {name: lm.tensors[name].data for name in lm.block_tensors(2, "mlp")}
    overlay = store.publish_overlay({n: t + 2 * t.std() * torch.randn_like(t) for n, t in roots.items()})
    facts = toy_facts()
    objects = tuple(fact.object for fact in facts)
    edits = [
        Edit(str(i), fact.subject, facts[i + 1].object, "capital", neighbors=(_prompt(facts[i + 2].subject),))
        for i, fact in enumerate(facts[:4])
    ]
    probes = [
        Probe(f"p{i}", _prompt(fact.subject), fact.object, (), objects) for i, fact in enumerate(facts[4:])
    ]
    return ScoreOrder(
        store_dir=store.path,
        device="cpu",
        root_digest=digest,
        before=None,
        after=overlay.digest,
        batch_size=8,
        edits=edits,
        relations=RELATIONS,
        probes_before=probes,
        probes_after=probes,
    )


def _prompt(subject: str) -> str:
    return RELATIONS["capital"].evaluation_prompts(subject)[0]


def work(order: ScoreOrder) -> tuple[ScoreDone, list[Any]]:
    said: list[Any] = []
    result = score_work(Bench(), order.model_dump(mode="json"), Tell(said.append))
    return ScoreDone.model_validate(result), said


def test_a_job_that_is_scored_again_gives_the_same_and_reads_what_was_kept(
    order: ScoreOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, said = work(order)
    assert first.before != first.after
    assert [answer.answer for answer in first.before.probes] != [a.answer for a in first.after.probes]
    assert {message["said"] for message in said} == {"phase", "progress"}
    kept = list((order.store_dir / "statistics").iterdir())
    assert len(kept) == 2
    monkeypatch.setattr(PrefixStates, "_keep", None)  # nothing new is computed
    monkeypatch.setattr(CheckpointStore, "remember", None)
    assert work(order)[0] == first


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_what_was_kept_and_is_damaged_is_computed_anew(order: ScoreOrder, damage: str) -> None:
    first, _ = work(order)
    store, kept = CheckpointStore(order.store_dir), [*(order.store_dir / "statistics").iterdir()]
    raw = {file: file.read_bytes() for file in kept}
    for file, whole in raw.items():
        if damage == "foreign":
            store.remember("another", {"ids": torch.zeros(3)})
            (other,) = set((order.store_dir / "statistics").iterdir()) - raw.keys()
            other.rename(file)
        else:
            file.write_bytes(
                whole[:-9] if damage == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
            )
    assert work(order)[0] == first
    assert {file: file.read_bytes() for file in kept} == raw


def test_what_was_said_earlier_changes_no_answer(order: ScoreOrder) -> None:
    first, _ = work(order)
    right = {answer.probe_id: answer.answer for answer in first.before.probes}
    wrong = dict.fromkeys(right, " of the")
    for said in (right, wrong):
        assert work(order.model_copy(update={"said": said}))[0] == first


def test_probes_of_production_that_were_answered_need_not_be_asked_again(order: ScoreOrder) -> None:
    first, _ = work(order)
    said = {answer.probe_id: answer.answer for answer in first.before.probes}
    after, _ = work(order.model_copy(update={"said": said, "probes_before": []}))
    assert after.after == first.after
    assert after.before.probes == []
