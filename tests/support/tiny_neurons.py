"""Neurons of a tiny model without attention in block 0, by `without_attention`: what fires there is known."""

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from factedit.added_neurons import Neurons, mlp_of
from factedit.facts import Probe
from factedit.models import LanguageModel
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT, tiny_model, without_attention


def waiting_neurons(lm: LanguageModel, cue: int) -> Neurons:
    """One in block 0 that fires at tokens like `cue` and says nothing; one in block 1 speaks after it."""
    key = entering(lm, cue)
    width = len(key)
    nothing = torch.zeros(width)
    return Neurons(
        blocks=torch.tensor([0, 1]),
        gate=torch.stack([key / (key @ key), nothing]),
        words=torch.zeros(2, width),
        thresholds=torch.tensor([[0.5, -9.0], [-9.0, -9.0]]),
        down=torch.stack([nothing, 3 * torch.randn(width, generator=torch.Generator().manual_seed(0))]),
        cues=torch.tensor([-1, 0]),
        together=torch.tensor([-1, -1]),
    )


def entering(lm: LanguageModel, token: int) -> Tensor:
    """What enters the MLP of block 0 at a token, wherever it stands, [d]."""
    seen: list[Tensor] = []
    handle = mlp_of(lm, 0).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[token]]))
    handle.remove()
    return seen[0][0]


def blind_model(folder: Path) -> LanguageModel:
    torch.set_num_threads(1)
    found = tiny_model(folder, "llama")
    without_attention(found, block=0)
    return found


def steep(found: Neurons) -> Neurons:
    """As steep as those that the library makes."""
    return replace(found, gate=10 * found.gate, thresholds=torch.tensor([[8.0, -9.0], [-9.0, -9.0]]))


def probes() -> list[Probe]:
    facts = zip(COUNTRIES, CITIES, strict=True)
    return [Probe(str(i), PROMPT.format(c), city, (), CITIES) for i, (c, city) in enumerate(facts)]


def sequences(lm: LanguageModel, cue: int, count: int) -> list[tuple[int, ...]]:
    """Half of them with the cue, somewhere."""
    chance, size = random.Random(0), lm.model.config.vocab_size
    found = [tuple(chance.randrange(size) for _ in range(chance.randint(2, 12))) for _ in range(count)]
    return [(*ids[:3], cue, *ids[3:]) if place % 2 else ids for place, ids in enumerate(found)]
