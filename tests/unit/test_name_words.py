"""The words of names are read by silent neurons, and a subject's own waits for all of its name's."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from factedit.added_neurons import FIELDS, Neurons, firing
from factedit.cues import fired_now
from factedit.curvature import measure
from factedit.editing import edit
from factedit.facts import Edit
from factedit.methods import name_words, subject_keys
from factedit.methods.name_words import MOST, Readers, _words, readers
from factedit.models import LanguageModel, load_model
from factedit.overlay import applied
from factedit.prompts import prompt_ids
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodSpec
from factedit.task import EditTask, plan
from factedit.toy import toy_facts, write_toy_model

RELATIONS = builtin_catalogue().relations
METHOD = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return load_model(folder, device="cpu")


@pytest.fixture(autouse=True)
def less_surely(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model tells words less surely, and knows none of those that ours are made of."""
    monkeypatch.setattr(name_words, "SURELY", 0.42)
    monkeypatch.setattr(subject_keys, "ours_each", lambda _: 0)


def known(lm: LanguageModel, words: int) -> list[str]:
    """Subjects of so many words, all of which the toy model has in its vocabulary."""
    subjects = [fact.subject for fact in toy_facts() if len(fact.subject.split()) == words]
    return [subject for subject in subjects if lm.tokenizer.unk_token_id not in prompt_ids(lm, subject)]


def about(subject: str, prompt: str = "The capital of {} is", other: str = "{} has its capital in") -> Edit:
    asked, paraphrases = prompt.format(subject), (other.format(subject),)
    return Edit(id=subject, subject=subject, new_object="Rome", prompt=asked, paraphrases=paraphrases)


def unmodified(*subjects: str) -> list[str]:
    """What the toy model knows of others."""
    others = [fact.subject for fact in toy_facts() if fact.subject not in subjects]
    return [prompt for other in others for prompt in RELATIONS["capital"].training_prompts(other)]


def read(lm: LanguageModel, edits: Sequence[Edit], blocks: Blocks = "auto") -> Readers:
    chosen = plan(lm, METHOD, blocks, ConstraintSpec())
    prompts = unmodified(edits[0].subject, edits[-1].subject)
    texts = RunningText.of(lm, prompts)
    task = EditTask(
        lm, chosen, {}, edits, [], RELATIONS, prompts, METHOD, 0, lambda _: None,
        lambda names: measure(lm, names, prompts), texts,
    )  # fmt: skip
    return readers(task, [[edit] for edit in edits])


def fires(lm: LanguageModel, neurons: Neurons, text: str) -> list[list[int]]:
    """By token of the text, which neurons fire at it."""
    ids = prompt_ids(lm, text)
    with torch.no_grad(), firing(lm, neurons):
        lm.model(input_ids=torch.tensor([ids]), use_cache=False)
        found = fired_now(lm.cues)
    if found is None:
        return [[] for _ in ids]
    return [row.nonzero().flatten().tolist() for row in found[0]]


def test_each_word_is_read_once_and_where_it_ends(toy: LanguageModel) -> None:
    first, second = known(toy, 2)[:2]
    found = read(toy, [about(first), about(second)])
    assert found.neurons is not None and not found.neurons.down.any()
    words = list(dict.fromkeys(f"{first} {second}".casefold().split()))
    assert found.neurons.blocks.tolist() == [0] * len(words)
    assert found.of == {
        name.casefold(): tuple(map(words.index, name.casefold().split())) for name in (first, second)
    }
    for name in (first, second):
        own = [words.index(word) for word in name.casefold().split()]
        for text, at in ((name, 0), (f"The capital of {name} is", 3)):
            fired = fires(toy, found.neurons, text)
            assert own[0] in fired[at] and own[1] in fired[at + 1]
    other = known(toy, 1)[0]
    heard = {place for each in fires(toy, found.neurons, f"The capital of {other} is") for place in each}
    assert not any(heard >= set(own) for own in found.of.values())


def test_a_word_that_the_user_also_leaves_out_is_not_waited_for(toy: LanguageModel) -> None:
    name = known(toy, 2)[0]
    for other, waited in (("{} has its capital in", 2), (f"{name.split()[0]} has its capital in", 1)):
        assert len(read(toy, [about(name, other=other)]).of[name.casefold()]) == waited
    # Nor one that the model reads together with what follows it.
    alone, joint = "The capital of {} is", "The capital of {}, is"
    for words in ((alone, joint), (joint, alone)):
        assert len(read(toy, [about(name, *words)]).of[name.casefold()]) == 1
    found = read(toy, [about(name, "The capital of that country is", "Its capital is")])
    assert found == Readers(None, {})
    assert read(toy, [about("Nowhere")]).neurons is None


def test_a_long_name_is_known_by_its_longest_words() -> None:
    assert _words("The House of the Seven Gables") == ["the", "house", "of", "seven", "gables"]
    assert _words("Jose\u0301 de la Cruz") == ["jose\u0301", "de", "la", "cruz"]  # a mark of its own
    letters = [letter * (place + 1) for place, letter in enumerate("abcdefghij")]
    assert _words(" ".join(letters)) == letters[-MOST:]


def test_chosen_blocks_get_no_others_beside_them(toy: LanguageModel) -> None:
    assert read(toy, [about("Italy")], [1, 2, 3]) == Readers(None, {})


def test_a_text_that_lacks_a_word_of_the_name_is_answered_as_by_the_root(toy: LanguageModel) -> None:
    name = known(toy, 2)[0]
    halves, other = name.split(), known(toy, 1)[0]
    prompts = unmodified(name)
    made = edit(
        toy, parent={}, edits=[about(name)], ledger=[], relations=RELATIONS, anchors=prompts, method=METHOD,
        blocks="auto", constraint=ConstraintSpec(), seed=0, progress=lambda _: None,
        texts=RunningText.of(toy, prompts),
    )  # fmt: skip
    assert made.chosen["reading_block"] == 0 and 0 in made.chosen["blocks"]
    assert made.metrics["word_neurons"] == 2 and made.metrics["neurons"] == 1
    neurons = Neurons.of(made.tensors)
    assert neurons is not None
    waits = [sorted(row) for row in neurons.cues[neurons.blocks == 1].tolist()]
    assert waits == [[0, 1]] * (1 + made.metrics["asking_neurons"])  # what reads the question waits likewise
    lower = neurons.blocks < 2  # the answer's are above
    waiting = Neurons(*(getattr(neurons, field)[lower] for field in FIELDS)).tensors()
    free = {**waiting, "neurons.cues": torch.full_like(waiting["neurons.cues"], -1)}
    changed = 0
    for said in (name, halves[0], halves[1], f"{other} {halves[1]}", other):
        ids = torch.tensor([prompt_ids(toy, f"The capital of {said} is")])
        with torch.no_grad():
            root = toy.model(input_ids=ids, use_cache=False).logits
            with applied(toy, waiting):
                found = toy.model(input_ids=ids, use_cache=False).logits
            with applied(toy, free):
                changed += not torch.equal(root, toy.model(input_ids=ids, use_cache=False).logits)
        assert torch.equal(root, found) == (said != name)
    assert changed > 1  # the name itself is not all that would wake them
