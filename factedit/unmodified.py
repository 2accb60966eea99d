"""Unmodified facts as examples to train on: anchors with the answers they are to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from factedit.facts import Edit, Fact
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example, batches, next_token_example
from factedit.relations import Catalogue, builtin_catalogue


def facts_by_prompt(catalogue: Catalogue) -> Mapping[str, Fact]:
    """The anchor facts by the training prompts that ask for them; never a probe's."""
    found: dict[str, Fact] = {}
    for fact in catalogue.anchor_facts:
        for prompt in catalogue.relations[fact.relation].training_prompts(fact.subject):
            found.setdefault(prompt, fact)
    return found


@lru_cache(maxsize=1)
def _known() -> Mapping[str, Fact]:
    return facts_by_prompt(builtin_catalogue())


def unmodified_examples(lm: LanguageModel, prompts: Sequence[str]) -> list[Example]:
    """Each anchor with the answer to keep, in order: its true object, as Zhu et al. 2020 train on.

    A prompt that asks for no fact of the catalogue (a neighbor's) keeps the token that the model now
    answers first: call it under the root.
    """
    known = _known()
    bare = {prompt: next_token_example(lm, prompt) for prompt in prompts if prompt not in known}
    now = dict(zip(bare, _answered(lm, list(bare.values())), strict=True))
    return [
        answer_example(lm, prompt, known[prompt].object) if prompt in known else now[prompt]
        for prompt in prompts
    ]


@torch.no_grad()
def _answered(lm: LanguageModel, examples: Sequence[Example]) -> list[Example]:
    """The examples with the model's likeliest next token for their target."""
    found = list(examples)
    for batch in batches(lm, examples, 64):
        tokens = target_logits(lm, batch).argmax(-1).tolist()
        for place, token in zip(batch.index.tolist(), tokens, strict=True):
            found[place] = replace(examples[place], targets=(token,))
    return found


def relation_examples(
    lm: LanguageModel, prompts: Sequence[str], edits: Sequence[Edit]
) -> tuple[list[Example], list[int]]:
    """Those anchors that are facts of an edited relation, and the fact that each belongs to."""
    known, relations = _known(), {edit.relation for edit in edits}
    mine = [(prompt, known[prompt]) for prompt in prompts if prompt in known]
    mine = [(prompt, fact) for prompt, fact in mine if fact.relation in relations]
    places = {fact: place for place, fact in enumerate(dict.fromkeys(fact for _, fact in mine))}
    examples = [answer_example(lm, prompt, fact.object) for prompt, fact in mine]
    return examples, [places[fact] for _, fact in mine]
