"""Score a version: free greedy answers on edits, their evaluation templates, and probes.

Free generation is the measure. Teacher-forced match is a second column, never the verdict. Each
function scores what it is given; pairing before with after is the gate's and the report's work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from factedit.answers import begins_with, exactly, mentions
from factedit.erasing import others
from factedit.facts import Edit, Probe
from factedit.forward import target_logits
from factedit.generation import Generation, generate, log_probabilities
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied
from factedit.prompts import answer_example, answer_tokens, batches
from factedit.relations import Relation
from factedit.wording import edit_prompt, evaluation_prompts

NEW_TOKENS = 20
"""Tokens for an edit, which is right by its whole answer; longer targets get room for theirs and four."""

PROBE_TOKENS = 8
"""Tokens for a probe, whose answer is right by how it begins."""

ProgressFn = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What a version answers to a probe.

    `ranked_first`: the true object is the most probable of the candidates; None without candidates.
    """

    probe_id: str
    answer: str
    answer_right: bool
    ranked_first: bool | None

    @property
    def known(self) -> bool:
        return self.answer_right or bool(self.ranked_first)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """What a version answers to one prompt of an edit.

    `old_ranked_first`: of an erased fact, whether its old object is still the most probable of its
    relation's candidates; None where there are none, and of every other edit.
    """

    prompt: str
    answer: str
    right: bool
    old_ranked_first: bool | None = None


@dataclass(frozen=True, slots=True)
class EditOutcome:
    """What a version answers to an edit, and to words for it that were never trained on."""

    edit_id: str
    prompt: str
    answer: str
    right: bool
    stopped: bool
    teacher_forced: bool
    paraphrases: tuple[PromptOutcome, ...]
    old_ranked_first: bool | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def score_probes(
    lm: LanguageModel,
    overlay: Overlay,
    probes: Sequence[Probe],
    *,
    batch_size: int = 64,
    progress: ProgressFn | None = None,
) -> list[ProbeOutcome]:
    """Answer every probe, and rank its true object among its candidates, under `overlay`."""
    with applied(lm, overlay):
        answers = _answers(lm, [p.prompt for p in probes], PROBE_TOKENS, batch_size, progress)
        first = _ranked_first(lm, probes, batch_size)
    return [
        ProbeOutcome(
            probe_id=probe.id,
            answer=answer.text,
            answer_right=begins_with(answer.text, (probe.object, *probe.aliases)),
            ranked_first=rank,
        )
        for probe, answer, rank in zip(probes, answers, first, strict=True)
    ]


def score_edits(
    lm: LanguageModel,
    overlay: Overlay,
    edits: Sequence[Edit],
    relations: Mapping[str, Relation],
    *,
    batch_size: int = 64,
    progress: ProgressFn | None = None,
) -> list[EditOutcome]:
    """Answer every edit's own prompt and its relation's evaluation templates under `overlay`.

    Right means that the whole free answer, ended by the model itself, is the new object. An erased
    fact is right when the free answer does not say its old object and, where the catalogue has other
    objects of its relation, the old one is not the most probable of them.
    """
    prompts = [edit_prompt(edit, relations) for edit in edits]
    paraphrases = [evaluation_prompts(edit, relations) for edit in edits]
    asked = [*prompts, *(prompt for group in paraphrases for prompt in group)]
    owners = [*edits, *(e for e, group in zip(edits, paraphrases, strict=True) for _ in group)]
    with applied(lm, overlay):
        lengths = [len(answer_tokens(lm, p, e.new_object)) for p, e in zip(prompts, edits, strict=True)]
        answers = _answers(lm, asked, max([NEW_TOKENS, *(n + 4 for n in lengths)]), batch_size, progress)
        forced = _teacher_forced(lm, prompts, [edit.new_object for edit in edits], batch_size)
        first = _old_ranked_first(lm, owners, asked, batch_size)
    outcomes = [_outcome(*one) for one in zip(asked, answers, owners, first, strict=True)]
    rest = iter(outcomes[len(edits) :])
    return [
        EditOutcome(
            edit_id=edit.id,
            prompt=outcome.prompt,
            answer=outcome.answer,
            right=outcome.right,
            stopped=answer.stopped,
            teacher_forced=match,
            paraphrases=tuple(next(rest) for _ in group),
            old_ranked_first=outcome.old_ranked_first,
        )
        for edit, outcome, answer, match, group in zip(
            edits, outcomes[: len(edits)], answers[: len(edits)], forced, paraphrases, strict=True
        )
    ]


def _outcome(prompt: str, answer: Generation, edit: Edit, old_first: bool | None) -> PromptOutcome:
    if edit.erase:
        right = not mentions(answer.text, edit.old_object or "") and not old_first
    else:
        right = answer.stopped and exactly(answer.text, edit.new_object)
    return PromptOutcome(prompt, answer.text, right, old_first)


def _old_ranked_first(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[str], batch_size: int
) -> list[bool | None]:
    """Per prompt, whether the old object of the erased fact it asks for beats the relation's others."""
    probes = {
        place: Probe(
            edit.id, prompt, edit.old_object, (), (edit.old_object, *others(edit.relation, edit.old_object))
        )
        for place, (edit, prompt) in enumerate(zip(edits, prompts, strict=True))
        if edit.erase and edit.old_object is not None
    }
    first: list[bool | None] = [None] * len(prompts)
    ranks = _ranked_first(lm, list(probes.values()), batch_size)
    for place, rank in zip(probes, ranks, strict=True):
        first[place] = rank
    return first


def _answers(
    lm: LanguageModel, prompts: Sequence[str], new_tokens: int, batch_size: int, progress: ProgressFn | None
) -> list[Generation]:
    def told(done: int) -> None:
        if progress is not None:
            progress(done, len(prompts))

    return generate(lm, prompts, new_tokens, batch_size, told)


@torch.inference_mode()
def _teacher_forced(
    lm: LanguageModel, prompts: Sequence[str], targets: Sequence[str], batch_size: int
) -> list[bool]:
    examples = [answer_example(lm, p, t, stop=False) for p, t in zip(prompts, targets, strict=True)]
    match = [True] * len(examples)
    for batch in batches(lm, examples, batch_size):
        wrong = target_logits(lm, batch).argmax(-1) != batch.targets
        for row in set(batch.rows[wrong].tolist()):
            match[int(batch.index[row])] = False
    return match


def _ranked_first(lm: LanguageModel, probes: Sequence[Probe], batch_size: int) -> list[bool | None]:
    """Whether each true object beats its candidates in total log-probability.

    A candidate's first token bounds its total from above, and is all of it where there is no other
    token. So one forward pass settles most probes; the rivals that are left are spelt out, the
    likeliest first, until one of them wins or none is left.
    """
    ranked = [i for i, probe in enumerate(probes) if len(probe.candidates) > 1]
    own, rivals = _rivals(lm, [probes[i] for i in ranked], batch_size)
    first: list[bool | None] = [None] * len(probes)
    for i, left in zip(ranked, rivals, strict=True):
        first[i] = left is not None
    open_probes = [(i, total, left) for i, total, left in zip(ranked, own, rivals, strict=True) if left]
    while open_probes:
        examples = [answer_example(lm, probes[i].prompt, left[0], stop=False) for i, _, left in open_probes]
        totals = log_probabilities(lm, examples, batch_size)
        still: list[tuple[int, float, list[str]]] = []
        for (i, own_total, left), total in zip(open_probes, totals, strict=True):
            if total > own_total:
                first[i] = False
            elif left[1:]:
                still.append((i, own_total, left[1:]))
        open_probes = still
    return first


def _rivals(
    lm: LanguageModel, probes: Sequence[Probe], batch_size: int
) -> tuple[list[float], list[list[str] | None]]:
    """Each object's total log-probability, and the candidates whose first token alone is likelier.

    The likeliest come first; None where one of them has no other token, so that the object is beaten.
    """
    own = [0.0] * len(probes)
    found: list[list[str] | None] = [None] * len(probes)
    examples = [answer_example(lm, probe.prompt, probe.object, stop=False) for probe in probes]
    for batch in batches(lm, examples, batch_size):
        with torch.inference_mode():
            scores = target_logits(lm, batch).float().log_softmax(-1)
        picked = scores.gather(1, batch.targets[:, None]).squeeze(1).cpu()
        rows = batch.rows.cpu()
        for row, place in enumerate(batch.index.tolist()):
            mine = (rows == row).nonzero().flatten()
            own[place] = float(picked[mine].sum())
            found[place] = _beating(lm, probes[place], scores[mine[0]].cpu(), own[place])
    return own, found


def _beating(lm: LanguageModel, probe: Probe, next_token: Tensor, own: float) -> list[str] | None:
    bounds: dict[str, float] = {}
    for name in probe.candidates:
        if name == probe.object or name in probe.aliases:
            continue
        tokens = answer_tokens(lm, probe.prompt, name)
        bound = float(next_token[tokens[0]])
        if bound > own and len(tokens) == 1:
            return None
        if bound > own:
            bounds[name] = bound
    return sorted(bounds, key=lambda name: -bounds[name])
