"""Register a base model: bring it in, ask it what it knows, and show it to the service all at once.

Run by the operator's command line in a process of its own; loads torch.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from transformers.utils.logging import disable_progress_bar

from factedit.checkpoint_store import CheckpointStore
from factedit.curvature import NoCurvature
from factedit.facts import Probe
from factedit.leftovers import UNFINISHED
from factedit.manifests import Manifest
from factedit.methods.auto import gates_read
from factedit.methods.detectors import measured
from factedit.model_sources import ModelInfo, import_source
from factedit.models import LanguageModel, load_model
from factedit.outcomes import ProbeOutcome
from factedit.relations import Catalogue, builtin_catalogue
from factedit.scoring import score_probes
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.task import EditingError, plan
from service import models, probes
from service.api.text import Name
from service.database import Database
from service.errors import Conflict, Invalid
from service.settings import Settings
from service.tables import Model, Version
from workers import kept
from workers.background import Background
from workers.work import storable

ACTOR = "operator"

ProgressFn = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def register(
    database: Database, settings: Settings, name: str, source: str, progress: ProgressFn | None = None
) -> Model:
    """Register the model that `source` names, with its root as version and production.

    Nothing of it is visible until all of it is there: the root in the store, its probes, and its own
    answers to them, the baseline of every later comparison. Registering the same again changes nothing.

    Raises:
        Invalid: no path of the API could hold the name. Conflict: the name is another source's.
        ModelError: the source can't be brought in. StorageFull.
    """
    check_name(name)
    disable_progress_bar()  # of transformers; ours is told of by `progress`
    told = progress or (lambda *_: None)
    with database.transaction() as s:
        found = _registered(s, name, source)
    if found is not None:
        return found
    store = CheckpointStore(settings.store_dir.resolve())
    told("importing", 0, 1)
    info, digest = _import(store, source)
    told("importing", 1, 1)
    asked = catalogue_probes(builtin_catalogue())
    lm = load_model(store.root_folder(digest), device=settings.device)
    with kept.root_answers(store, digest, lm, settings.score_batch) as root:
        outcomes = score_probes(
            lm,
            {},
            asked,
            root=root,
            batch_size=settings.score_batch,
            progress=lambda done, total: told("asking what it knows", done, total),
        )
    measure_background(store, digest, lm, told)
    try:
        with database.transaction() as s:
            return _record(s, store, name, source, info, digest, asked, outcomes)
    except (Conflict, IntegrityError):
        # Somebody else registered the name meanwhile.
        with database.transaction() as s:
            found = _registered(s, name, source)
        if found is None:
            raise
        return found


def check_name(name: str) -> None:
    """Raises Invalid, which proposes a name that will do."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        fit = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]).strip("._-")[:100] or "model"
        raise Invalid(
            f"A model can't be called {name!r}: a name begins with a letter or digit and has at most 100 "
            f"letters, digits, '.', '_' and '-'. {fit!r} would do.",
            param="name",
        ) from error


def measure_background(store: CheckpointStore, digest: str, lm: LanguageModel, told: ProgressFn) -> None:
    """So that the first edit need not wait for it. A model that it does not suit has other methods."""
    with suppress(NoCurvature, EditingError):
        chosen = plan(lm, MethodSpec(), "auto", ConstraintSpec())
        names = [*measured(lm, chosen.subject_blocks), *chosen.names]
        background = Background()
        background.of(
            store, digest, lm, names, lambda done, total: told("reading unmodified facts", done, total)
        )
        if gates := gates_read(lm, chosen):
            told("reading running text", 0, 1)
            background.running_text(store, digest, lm, []).read(gates)
            background.asked(store, digest, lm).read(gates)
            told("reading running text", 1, 1)


def catalogue_probes(catalogue: Catalogue) -> list[Probe]:
    """The catalogue's held-out facts, asked in words that no edit ever trains on.

    So an evaluation template: the training templates of a relation are trained on by its edits.
    """
    candidates = {relation: catalogue.candidates(relation) for relation in catalogue.relations}
    return [
        Probe(
            id=str(place),
            prompt=catalogue.relations[fact.relation].evaluation_prompts(fact.subject)[0],
            object=fact.object,
            aliases=fact.aliases,
            candidates=candidates[fact.relation],
            subject=fact.subject,
            relation=fact.relation,
        )
        for place, fact in enumerate(catalogue.probe_facts)
    ]


def _registered(s: Session, name: str, source: str) -> Model | None:
    found = models.find(s, name)
    if found is not None and found.source != source:
        raise Conflict(
            f"There is a model {name!r} already, from another source; choose another name.",
            code="model_exists",
        )
    return found


def _import(store: CheckpointStore, source: str) -> tuple[ModelInfo, str]:
    # On the store's own disk: the system's temporary folder may be small.
    with tempfile.TemporaryDirectory(dir=store.path / UNFINISHED) as scratch:
        folder = Path(scratch) / "model"
        info = import_source(source, folder)
        return info, store.publish_root(folder)


def _record(
    s: Session,
    store: CheckpointStore,
    name: str,
    source: str,
    info: ModelInfo,
    digest: str,
    asked: Sequence[Probe],
    outcomes: Sequence[ProbeOutcome],
) -> Model:
    knows = sum(outcome.known for outcome in outcomes)
    model = models.create(
        s,
        name=name,
        source=source,
        root_digest=digest,
        task=info.task,
        architecture=info.architecture,
        dtype=info.dtype,
        n_blocks=info.n_blocks,
        n_parameters=info.n_parameters,
        info={"probes": len(asked), "known": knows},
        actor=ACTOR,
    )
    assert model.root_version_id is not None
    root = s.get_one(Version, model.root_version_id)
    root.metrics = {"probes": len(asked), "known": knows}
    root.manifest = _root_manifest(root, model).model_dump(mode="json")
    store.publish_manifest(root.id, root.manifest)
    rows = probes.create(s, model, "catalogue", (_row(probe) for probe in asked))
    probes.store_outcomes(
        s,
        root.id,
        [
            {
                "probe_id": row.id,
                "answer": storable(outcome.answer),
                "answer_right": outcome.answer_right,
                "ranked_first": outcome.ranked_first,
            }
            for row, outcome in zip(rows, outcomes, strict=True)
        ],
    )
    return model


def _root_manifest(root: Version, model: Model) -> Manifest:
    return Manifest(
        version=root.id,
        model=model.name,
        root_digest=model.root_digest,
        parent=None,
        job=None,
        overlay_digest=None,
        overlay_bytes=0,
        seed=0,
        method={},
        constraint={},
        chosen={},
        metrics=root.metrics,
        ledger=[],
    )


def _row(probe: Probe) -> dict[str, object]:
    return {
        "subject": probe.subject,
        "relation": probe.relation,
        "prompt": probe.prompt,
        "object": probe.object,
        "aliases": list(probe.aliases),
        "candidates": list(probe.candidates),
    }
