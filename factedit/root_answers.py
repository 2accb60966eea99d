"""What a root answers to probes, kept from one job to the next: many a version answers most of them alike.

A version whose neurons are silent (factedit.silence) in all that was read to score a probe would read and
answer the same again. So beside each answer there is kept what was read for it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from factedit.facts import Probe
from factedit.models import LanguageModel
from factedit.outcomes import ProbeOutcome
from factedit.overlay import Overlay
from factedit.silence import can_be_silent, silent, silent_by_words
from factedit.word_states import WordStates, reading_block

MOST = 1 << 15
"""Probes that are kept, the last ones; the catalogue has some 2,000."""
FORM = 1
"""To be raised whenever outcomes come to be found otherwise: what was kept before is of no use then."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """An outcome, and all sequences of tokens that it depends on."""

    outcome: ProbeOutcome
    read: tuple[Ids, ...]


class RootAnswers:
    """The root's outcomes, by what is asked. `grown`: since they were unpacked."""

    def __init__(self, kept: Mapping[str, Kept] | None = None) -> None:
        self.grown = False
        self._kept = dict(kept or {})

    def of(
        self, lm: LanguageModel, overlay: Overlay, probes: Sequence[Probe], words: WordStates | None = None
    ) -> dict[int, ProbeOutcome]:
        """By place, the outcomes that `overlay` surely leaves as they are.

        `words`: what is known of the root in some block; of use if that is the overlay's `reading_block`.
        """
        if not can_be_silent(overlay):
            return {}
        keys = [_key(probe) for probe in probes]
        known = {key: kept.read for key in keys if (kept := self._kept.get(key)) is not None}
        if words is not None and words.block == reading_block(overlay):
            unmoved = silent_by_words(lm, overlay, known, words)
        else:
            read = [(key, ids) for key, sequences in known.items() for ids in sequences]
            said = silent(lm, overlay, [ids for _, ids in read])
            moved = {key for (key, _), same in zip(read, said, strict=True) if not same}
            unmoved = {key: key not in moved for key in known}
        return {
            at: replace(self._kept[key].outcome, probe_id=probes[at].id)
            for at, key in enumerate(keys)
            if unmoved.get(key, False)
        }

    def keep(self, probe: Probe, outcome: ProbeOutcome, read: Iterable[Ids]) -> None:
        """What the root itself answered, and all that was read for it."""
        if len(self._kept) >= MOST:
            del self._kept[next(iter(self._kept))]
        self._kept[_key(probe)] = Kept(outcome, tuple(dict.fromkeys(read)))
        self.grown = True

    # As tensors

    def packed(self) -> dict[str, Tensor]:
        """For `unpacked`."""
        text = json.dumps({key: asdict(kept) for key, kept in self._kept.items()})
        return {"json": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor] | None) -> "RootAnswers":
        """What was packed; empty if it is not of this form."""
        try:
            found = json.loads(tensors["json"].numpy().tobytes())  # type: ignore[index]
            return cls(
                {
                    key: Kept(ProbeOutcome(**kept["outcome"]), tuple(map(tuple, kept["read"])))
                    for key, kept in found.items()
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return cls()


def _key(probe: Probe) -> str:
    asked = [probe.prompt, probe.object, probe.aliases, probe.candidates]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
