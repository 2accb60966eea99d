"""Where tokens of an answer follow: the words by which a neuron is to know that position and no other."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from factedit.facts import Edit
from factedit.methods.keys import Context, subject_end
from factedit.methods.subject_keys import subject_words
from factedit.models import LanguageModel
from factedit.names import invented_name, made_alike
from factedit.prompts import Example, answer_example, prompt_ids
from factedit.relations import builtin_catalogue
from factedit.task import EditTask
from factedit.wording import ours_each, plain_prompts, training_prompts

OTHERS = 16
"""Subjects of the catalogue, as many invented ones and as many namesakes, that each edit's words are said of:
its neurons may not answer to them. On half of them a neuron is solved for, on the others it is tried."""
RIVALS = 96
"""Places of rivals that a neuron is solved for, at most."""

Formed = tuple[Edit, int, str]
"""Where a token of an answer follows: whose, which one, in which prompt."""


@dataclass(frozen=True, slots=True)
class Round:
    """In which words answers are to be finished.

    Attributes:
        turn: how many times other words of the relation are taken beyond those that the subject's neuron was
            sought in; 0: in the edit's own words alone.
        mistaken: a neuron that fires at more than this share of what it is tried on is not added.
        first: which of the upper blocks the first edit's neurons are added to; the edits take turns. In the
            next block a position may be told from others that can't be in this one.
    """

    turn: int
    mistaken: float
    first: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """A token that does not follow yet: of which edit's answer, and its place in it; the edit's own place."""

    edit: Edit
    place: int
    number: int


def prompts_of(task: EditTask, mistake: Mistake, turn: int) -> list[str]:
    """The words that a neuron is to know: others than its subject's neuron was sought in, by the turn; then
    the plainest in small letters too, if the model knows any."""
    ours = ours_each(len(task.edits)) if turn else 0
    found = training_prompts(mistake.edit, task.relations, mistake.number + turn, ours=ours)
    small = found[0].lower()
    spelt = turn > 0 and task.lm.tokenizer.unk_token_id not in prompt_ids(task.lm, small)
    return list(dict.fromkeys([*found, small])) if spelt else found


def said_of_others(task: EditTask, mistake: Mistake, prompts: Sequence[str]) -> list[str]:
    """The same words, said of others."""
    edit, rng = mistake.edit, random.Random(f"{task.seed} {mistake.edit.subject}")
    edited = {one.subject.casefold() for one in [*task.edits, *task.ledger]}
    known = sorted({fact.subject for fact in builtin_catalogue().anchor_facts})
    names = [
        *rng.sample(known, OTHERS),
        *(invented_name(rng) for _ in range(OTHERS)),
        *(made_alike(edit.subject, subject_words(), rng) for _ in range(OTHERS)),
    ]
    naming = [prompt for prompt in prompts if edit.subject in prompt]
    return [
        rng.choice(naming).replace(edit.subject, name)
        for name in dict.fromkeys(names)
        if naming and name.casefold() not in edited
    ]


def word_groups(mine: Sequence[Mistake], cues: Sequence[int]) -> list[int]:
    """Which mistakes are made in like words, a number each: all first tokens are, where an answer begins.

    -1: in whatever words. An answer that has begun after its subject is in the right ones.
    """
    found: list[int] = []
    for mistake, cue in zip(mine, cues, strict=True):
        later = -1 if cue >= 0 else max([0, *found]) + 1
        found.append(0 if mistake.place == 0 else later)
    return found


def where_it_follows(
    task: EditTask, mistake: Mistake, prompts: Sequence[str], owner: int, share: float = 1.0
) -> list[Context]:
    """Where the token is to follow, after prompts and what of the new object comes before it.

    `share`: the weight of all of them.
    """
    found: list[Context] = []
    for prompt in prompts:
        example = answer_example(task.lm, prompt, mistake.edit.new_object)
        if mistake.place < len(example.positions):  # a name may be split otherwise after other words
            found.append(_up_to(example, mistake.place, owner))
    return [replace(context, weight=share / len(found)) for context in found]


def whole_answers(task: EditTask, mistake: Mistake, turn: int, owner: int) -> list[Context]:
    """The edit's prompts with all of its answer, whatever the mistake in it."""
    prompts = prompts_of(task, mistake, turn)
    examples = [answer_example(task.lm, prompt, mistake.edit.new_object) for prompt in prompts]
    share = 1 / len(examples)
    return [Context(owner, each, each.positions[0], share, bare=False) for each in examples]


def where_others_follow(
    lm: LanguageModel, mistake: Mistake, prompts: Sequence[str], owner: int
) -> list[Context]:
    """Where the answer's other tokens follow: there this neuron is to be silent."""
    examples = [answer_example(lm, prompt, mistake.edit.new_object) for prompt in prompts]
    return [
        _up_to(example, place, owner)
        for example in examples
        for place in range(len(example.positions))
        if place != mistake.place
    ]


def where_it_is_too_early(
    task: EditTask, mistake: Mistake, prompts: Sequence[str], owner: int
) -> list[Context]:
    """The subject's last token, where the answer does not follow at once: what was said there would be read
    from there on."""
    found: list[Context] = []
    for prompt in prompts:
        example = answer_example(task.lm, prompt, mistake.edit.new_object)
        at = subject_end(task.lm, prompt, mistake.edit.subject)
        if at < example.positions[0]:
            found.append(Context(owner, Example(example.ids[: at + 1], (at,), (0,)), at, 1.0, bare=False))
    return found


def plainly_formed(
    task: EditTask, mine: Sequence[Mistake]
) -> tuple[dict[Formed, Context], dict[Formed, Context]]:
    """Where the answers of all edits in force are formed in their plainest words: (what these mistakes leave
    alone, what they are)."""
    places = {(mistake.edit, mistake.place) for mistake in mine}
    found: tuple[dict[Formed, Context], dict[Formed, Context]] = {}, {}
    for edit in [*task.edits, *task.ledger]:
        for prompt in [] if edit.erase else plain_prompts(edit, task.relations):
            example = answer_example(task.lm, prompt, edit.new_object)
            for place in range(len(example.positions)):
                found[(edit, place) in places][edit, place, prompt] = _up_to(example, place, -1)
    return found


def by_edit(*formed: Mapping[Formed, Context]) -> dict[Edit, list[tuple[int, Context]]]:
    """Where each edit's answer is formed, (which token of it, where)."""
    found: dict[Edit, list[tuple[int, Context]]] = {}
    for (edit, place, _), context in (item for each in formed for item in each.items()):
        found.setdefault(edit, []).append((place, context))
    return found


def where_rivals_follow(
    formed: Mapping[Edit, Sequence[tuple[int, Context]]],
    mistake: Mistake,
    owner: int,
    rivals: Iterable[Edit],
) -> list[Context]:
    """Where answers of these other edits, in words much like its own perhaps, want another token.

    Of very many, so many that are spread over them all: a neuron that fires at the rest is not added
    (factedit.methods.trust).
    """
    mine = {at.example.targets for place, at in formed.get(mistake.edit, ()) if place == mistake.place}
    theirs = [at for edit in rivals for _, at in formed.get(edit, ())]
    theirs = [at for at in theirs if at.example.targets not in mine]
    return [replace(at, edit=owner) for at in theirs[:: max(1, -(-len(theirs) // RIVALS))]]


def _up_to(example: Example, place: int, owner: int) -> Context:
    at, token = example.positions[place], example.targets[place]
    return Context(owner, Example(example.ids[: at + 1], (at,), (token,)), at, 1.0, bare=False)
