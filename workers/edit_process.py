"""The edit work, in the child: train, verify that nothing else moved, publish to the store."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from factedit.anchors import anchor_prompts
from factedit.blocks import NoSuchBlock
from factedit.editing import Edited, EditingError, edit
from factedit.manifests import Manifest
from factedit.models import LanguageModel
from factedit.relations import builtin_catalogue
from factedit.wording import NoWords
from workers.bench import Bench, complaints
from workers.orders import EditDone, EditOrder
from workers.work import Json, Tell, WorkFailed, storable


def edit_work(bench: Bench, message: Json, tell: Tell) -> Json:
    """Make the version that an edit order asks for; what it says is durable when this returns."""
    order = EditOrder.model_validate(message)
    with complaints():
        tell.phase("loading")
        lm = bench.root(order)
        parent = bench.overlay(order, order.parent_overlay)
        tell.phase("editing")
        edited = _train(lm, order, parent, tell)
        integrity = {**bench.check_root(), **_changes(lm, edited, parent)}
        tell.phase("publishing")
        return _publish(bench, order, edited, integrity).model_dump(mode="json")


def _train(lm: LanguageModel, order: EditOrder, parent: Mapping[str, Tensor], tell: Tell) -> Edited:
    in_force = [*order.edits, *order.ledger]
    spec = order.method.anchors
    try:
        return edit(
            lm,
            parent=parent,
            edits=order.edits,
            ledger=order.ledger,
            relations=order.relations,
            anchors=anchor_prompts(builtin_catalogue(), in_force, spec.count, order.seed, order.avoid),
            method=order.method,
            blocks=order.blocks,
            constraint=order.constraint,
            seed=order.seed,
            progress=tell.progress,
        )
    except (EditingError, NoSuchBlock, NoWords) as error:
        raise WorkFailed("editing_failed", str(error)) from error


def _changes(lm: LanguageModel, edited: Edited, parent: Mapping[str, Tensor]) -> dict[str, Any]:
    """What of the parent's weights moved, and whether all of it lies in the chosen blocks."""
    moved = []
    for name in sorted(edited.tensors.keys() | parent.keys()):
        root = lm.tensors[name].data.cpu()
        if not torch.equal(edited.tensors.get(name, root), parent.get(name, root)):
            moved.append(name)
    chosen = set(edited.chosen["blocks"])
    return {
        "changed_tensors": moved,
        "unchosen_blocks_unchanged": all(lm.block_of(name) in chosen for name in moved),
    }


def _publish(bench: Bench, order: EditOrder, edited: Edited, integrity: Mapping[str, Any]) -> EditDone:
    store = bench.store(order.store_dir)
    published = store.publish_overlay(edited.tensors)
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
