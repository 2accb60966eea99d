"""Running text of a model's own: what it reads and writes where nobody asks for facts.

Prompts hold little of what running text holds: brackets, numbers, headings, sentences after one another. What
is measured on prompts alone leaves an edit free to act there. A model's own samples need no data, suit any
model, and are the same for every edit of it.
"""

import random
import re
from collections.abc import Sequence
from typing import Any

import torch

from factedit.anchors import background_prompts
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.prefixes import PREFIXES
from factedit.prompts import prompt_ids
from factedit.relations import builtin_catalogue

TEXTS, TOKENS = 64, 128
"""So many texts, and so many new tokens each."""
NOISE = 0.2
"""Share of a noisy text's tokens that are replaced."""
BESIDE = 500
"""Prompts of the background in which an edit is to be silent as well."""


@torch.no_grad()
def own_texts(lm: LanguageModel, seed: int = 0) -> list[str]:
    """Texts that a causal model writes by itself, half after neutral sentences and half after facts.

    Sampled at temperature 1 (Holtzman et al. 2020, section 4: greedy text is unlike any other); the same
    for a seed on one device kind and number of threads. A model that can't write has none.
    """
    if lm.task != "causal" or not lm.model.can_generate():
        return []
    facts = background_prompts(builtin_catalogue())
    starts = [facts[i] if i % 2 else PREFIXES[i // 2 % len(PREFIXES)] for i in range(TEXTS)]
    ids = [prompt_ids(lm, text) for text in starts]
    width, pad = max(map(len, ids)), lm.tokenizer.pad_token_id or 0
    read = torch.tensor([[pad] * (width - len(each)) + each for each in ids], device=lm.device)
    real = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in ids], device=lm.device)
    room = getattr(lm.model.config, "max_position_embeddings", None) or width + TOKENS
    new = max(1, min(TOKENS, room - width))
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model: Any = lm.model
        written = model.generate(
            input_ids=read,
            attention_mask=real,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=pad,
        )
    texts = [lm.tokenizer.decode(row[width:], skip_special_tokens=True) for row in written]
    return [f"{start}{text}" for start, text in zip(starts, texts, strict=True)]


def speaking_of(texts: Sequence[str], edits: Sequence[Edit]) -> list[str]:
    """Those in which an edited subject occurs."""
    names = "|".join(re.escape(edit.subject) for edit in edits)
    # As words of their own: "Ur" does not occur in "during".
    spoken = re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE)
    return [text for text in texts if names and spoken.search(text)]


def noisy(lm: LanguageModel, texts: Sequence[str], seed: int = 0) -> list[str]:
    """The texts with some of their tokens replaced by any others: as odd as texts from elsewhere may be."""
    rng, found = random.Random(seed), []
    odd = sorted(set(range(len(lm.tokenizer))) - set(lm.tokenizer.all_special_ids))
    for text in texts:
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        replaced = [rng.choice(odd) if rng.random() < NOISE else each for each in ids]
        found.append(str(lm.tokenizer.decode(replaced)))
    return found


def silent_texts(lm: LanguageModel, texts: Sequence[str]) -> list[str]:
    """What neurons are to be silent in, where no edited subject occurs: texts and background prompts.

    A model's own text is smoother than what it may be given to read, so that odd text is among it.
    """
    return [*texts, *noisy(lm, texts), *background_prompts(builtin_catalogue())[:BESIDE]]
