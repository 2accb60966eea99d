"""The edit work, in the child: train, verify that nothing else moved, publish to the store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.anchors import draw
from factedit.block_trials import anchors_wanted
from factedit.blocks import NoSuchBlock
from factedit.curvature import Covariance
from factedit.editing import edit
from factedit.manifests import Manifest
from factedit.models import LanguageModel
from factedit.overlay import RESERVED, Overlay
from factedit.relations import builtin_catalogue
from factedit.spilling import Room
from factedit.task import Edited, EditingError, plan
from factedit.wording import NoWords
from workers.background import apart_from
from workers.bench import Bench, complaints
from workers.orders import EditDone, EditOrder
from workers.work import Json, Tell, WorkFailed, storable


def edit_work(bench: Bench, message: Json, tell: Tell) -> Json:
    """Make the version that an edit order asks for; what it says is durable when this returns."""
    order = EditOrder.model_validate(message)
    with complaints(), _asked_for():
        tell.phase("loading")
        lm = bench.root(order)
        lm.room = Room(order.cache_bytes, order.store_dir)
        parent = bench.overlay(order, order.parent_overlay)
        tell.phase("editing")
        edited = _train(bench, order, lm, parent, tell)
        integrity = {**bench.check_root(), **_changes(lm, edited, parent)}
        tell.phase("publishing")
        return _publish(bench, order, edited, integrity).model_dump(mode="json")


@contextmanager
def _asked_for() -> Iterator[None]:
    """What is wrong with the order itself."""
    try:
        yield
    except (EditingError, NoSuchBlock, NoWords) as error:
        raise WorkFailed("editing_failed", str(error)) from error


def _background(
    bench: Bench, order: EditOrder, lm: LanguageModel, tell: Tell, names: Sequence[str]
) -> Covariance:
    """What enters the matrices `names` while the root reads of other subjects than the edited ones."""

    def told(done: int, total: int) -> None:
        tell.progress({"phase": "loading", "done": done, "total": total})

    whole = bench.background(order, names, told)
    return apart_from(lm, whole, bench.texts(order), [*order.edits, *order.ledger])


def _train(
    bench: Bench, order: EditOrder, lm: LanguageModel, parent: Mapping[str, Tensor], tell: Tell
) -> Edited:
    chosen = plan(lm, order.method, order.blocks, order.constraint)
    in_force = [*order.edits, *order.ledger]
    anchors = draw(
        builtin_catalogue(),
        in_force,
        order.relations,
        anchors_wanted(chosen, order.blocks),
        order.seed,
        order.avoid,
        contrasting=chosen.preset.contrasts,
    )
    return edit(
        lm,
        parent=parent,
        edits=order.edits,
        ledger=order.ledger,
        relations=order.relations,
        anchors=anchors,
        method=order.method,
        blocks=order.blocks,
        constraint=order.constraint,
        seed=order.seed,
        progress=tell.progress,
        background=lambda names: _background(bench, order, lm, tell, names),
        texts=bench.running_text(order) if chosen.reads_texts else None,
        asked=bench.asked(order),
    )


def _changes(lm: LanguageModel, edited: Edited, parent: Mapping[str, Tensor]) -> dict[str, Any]:
    """What of the parent's weights moved, and whether all of it lies in the chosen blocks."""
    moved = []
    for name in sorted(edited.tensors.keys() | parent.keys()):
        # What is no weight of the root's (factedit.overlay.RESERVED) is nothing in it.
        root = torch.empty(0) if name in RESERVED else lm.tensors[name].data.cpu()
        if not torch.equal(edited.tensors.get(name, root), parent.get(name, root)):
            moved.append(name)
    blocks = {lm.block_of(name) for name in moved if name not in RESERVED}
    blocks |= _with_neurons(edited.tensors) - _with_neurons(parent)
    return {
        "changed_tensors": moved,
        "unchosen_blocks_unchanged": blocks <= set(edited.chosen["blocks"]),
    }


def _with_neurons(overlay: Overlay) -> set[int | None]:
    """The blocks that it adds neurons to."""
    neurons = Neurons.of(overlay)
    return set() if neurons is None else set(neurons.blocks.tolist())


def _publish(bench: Bench, order: EditOrder, edited: Edited, integrity: Mapping[str, Any]) -> EditDone:
    store = bench.store(order.store_dir)
    published = store.publish_overlay(edited.tensors, order.root_digest)
    metrics = storable({**edited.metrics, "integrity": dict(integrity)})
    manifest = Manifest(
        **order.manifest,
        overlay_digest=published.digest,
        overlay_bytes=published.bytes,
        chosen=edited.chosen,
        metrics=metrics,
    ).model_dump(mode="json")
    store.publish_manifest(order.manifest["version"], manifest)
    return EditDone(
        overlay_digest=published.digest, overlay_bytes=published.bytes, manifest=manifest, metrics=metrics
    )
