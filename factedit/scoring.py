"""Score a version: free greedy answers on edits, their evaluation templates, and probes.

Free generation is the measure. Teacher-forced match is a second column, never the verdict. Each
function scores what it is given; pairing before with after is the gate's and the report's work.
"""

from collections.abc import Callable, Mapping, Sequence

import torch

from factedit import greedy
from factedit.answers import begins_with, exactly, mentions
from factedit.drafts import Checked, Draft, said_before
from factedit.erasing import others
from factedit.facts import Edit, Probe
from factedit.forward import target_logits
from factedit.generation import Generation, generate, generation
from factedit.holding import wrong_rows
from factedit.models import LanguageModel
from factedit.outcomes import EditOutcome, ProbeOutcome, PromptOutcome
from factedit.overlay import Overlay, applied
from factedit.prefix_states import PrefixStates
from factedit.prompts import answer_example, answer_tokens, batches, names_tokens, prompt_ids
from factedit.ranking import Race, begin, continuation, finish, ranked_first
from factedit.relations import Relation
from factedit.root_answers import Ids, RootAnswers
from factedit.word_states import WordStates
from factedit.wording import edit_prompt, evaluation_prompts

NEW_TOKENS = 20
"""Tokens for an edit, which is right by its whole answer; longer targets get room for theirs and four."""

PROBE_TOKENS = 8
"""Tokens for a probe, whose answer is right by how it begins."""

ProgressFn = Callable[[int, int], None]


def score_probes(
    lm: LanguageModel,
    overlay: Overlay,
    probes: Sequence[Probe],
    *,
    said: Mapping[str, str] | None = None,
    states: PrefixStates | None = None,
    root: RootAnswers | None = None,
    words: WordStates | None = None,
    batch_size: int = 64,
    progress: ProgressFn | None = None,
) -> list[ProbeOutcome]:
    """Answer every probe, and rank its true object among its candidates, under `overlay`.

    None of `said`, `states`, `root` and `words` changes an answer (factedit.greedy), nor a rank, but for ties
    that rounding decides. `said`: by id, what another version answered (`PROBE_TOKENS` at most): what is
    still said needs no generation. `states`: of the blocks below the first that `overlay` changes
    (factedit.prefix_states). `root`: its answers, as far as they are known; where none of the overlay's
    neurons can speak they are its own, and `words` tells sooner which
    they are (factedit.word_states). What the root is asked here is kept in `root`.
    """
    if lm.task == "masked":
        told = _of(progress, len(probes))
        with applied(lm, overlay):
            answers = generate(lm, [p.prompt for p in probes], PROBE_TOKENS, batch_size, told)
            first = ranked_first(lm, probes, batch_size)
        return [_outcome_of(*one) for one in zip(probes, answers, first, strict=True)]
    known = {} if root is None else root.of(lm, overlay, probes, words)
    left = [probe for place, probe in enumerate(probes) if place not in known]
    told = _of(progress, len(probes), before=len(known))
    with applied(lm, overlay):
        found = _answered(lm, left, said or {}, states, batch_size, told)
    if root is not None and not overlay:
        for probe, (outcome, read) in zip(left, found, strict=True):
            root.keep(probe, outcome, read)
    asked = (outcome for outcome, _ in found)
    return [known[place] if place in known else next(asked) for place in range(len(probes))]


def _answered(
    lm: LanguageModel,
    probes: Sequence[Probe],
    said: Mapping[str, str],
    states: PrefixStates | None,
    batch_size: int,
    told: Callable[[int], None],
) -> list[tuple[ProbeOutcome, list[Ids]]]:
    """Each outcome of a causal model, and all that it depends on.

    What is read to check a draft also tells most of how the candidates rank.
    """
    races: dict[int, Race] = {}
    prompts = [tuple(prompt_ids(lm, probe.prompt)) for probe in probes]
    read: list[list[Ids]] = [[] for _ in probes]

    def seen(checked: Checked) -> None:
        read[checked.place].append((*prompts[checked.place], *checked.read))
        race = begin(lm, probes[checked.place], checked.read, checked.logits)
        if race is not None:
            races[checked.place] = race

    found = greedy.checked(
        lm,
        prompts,
        [_draft(lm, probe, said) for probe in probes],
        PROBE_TOKENS,
        batch_size,
        states=states,
        seen=seen,
        progress=told,
    )
    finish(lm, [races[place] for place in sorted(races)], batch_size)
    outcomes: list[ProbeOutcome] = []
    for place, (probe, answer) in enumerate(zip(probes, found, strict=True)):
        read[place].append((*prompts[place], *answer.tokens))
        race = races.get(place)
        if race is not None and race.tried:
            spelt = names_tokens(lm, probe.prompt, race.tried)
            read[place] += [continuation(prompts[place], tokens).ids for tokens in spelt]
        outcomes.append(_outcome_of(probe, generation(lm, answer), race.first if race else None))
    return [*zip(outcomes, read, strict=True)]


def _outcome_of(probe: Probe, answer: Generation, first: bool | None) -> ProbeOutcome:
    right = begins_with(answer.text, (probe.object, *probe.aliases))
    return ProbeOutcome(probe.id, answer.text, right, first)


def _draft(lm: LanguageModel, probe: Probe, said: Mapping[str, str]) -> Draft:
    """What was said before; else the object, by which most right answers begin."""
    if probe.id in said:
        return said_before(lm, probe.prompt, said[probe.id], PROBE_TOKENS)
    return tuple(answer_tokens(lm, probe.prompt, probe.object))


def _of(progress: ProgressFn | None, total: int, before: int = 0) -> Callable[[int], None]:
    """Progress of what is left, `before` being done already."""

    def told(done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    if before:
        told(0)
    return told


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
        room = max([NEW_TOKENS, *(n + 4 for n in lengths)])
        # Not checked: an edit is not compared with what was said before, and its answers are long.
        answers = generate(lm, asked, room, batch_size, _of(progress, len(asked)))
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
    ranks = ranked_first(lm, list(probes.values()), batch_size)
    for place, rank in zip(probes, ranks, strict=True):
        first[place] = rank
    return first


@torch.inference_mode()
def _teacher_forced(
    lm: LanguageModel, prompts: Sequence[str], targets: Sequence[str], batch_size: int
) -> list[bool]:
    examples = [answer_example(lm, p, t, stop=False) for p, t in zip(prompts, targets, strict=True)]
    match = [True] * len(examples)
    for batch in batches(lm, examples, batch_size):
        for row in wrong_rows(batch, target_logits(lm, batch)):
            match[int(batch.index[row])] = False
    return match
