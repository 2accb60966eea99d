"""Batches of one shape, in which a row's numbers depend on nothing but the row.

Half-precision kernels round by the shape of a batch: of two tokens that are about as likely, one may win in
one batch and the other in the next. But in one shape a row's rounding depends neither on its place nor on its
neighbours, nor a token's on what follows it. So what is to be compared is read in batches of as many rows
whatever there is to read, and as wide as the prompt and the longest answer to it need, in steps of `COLUMNS`.
"""

from collections.abc import Sequence
from dataclasses import replace

from factedit.models import LanguageModel
from factedit.prompts import Batch, Example, collate

ROWS = 32
"""Hardly slower than more of them; and where little is left to read, little is filled up."""
COLUMNS = 8


def width_for(lm: LanguageModel, length: int) -> int:
    """How wide a batch is that has room for `length` tokens a row."""
    rounded = -(-length // COLUMNS) * COLUMNS
    room = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None) or rounded
    return max(length, min(rounded, int(room)))


def fixed(lm: LanguageModel, examples: Sequence[Example], rows: int, width: int) -> Batch:
    """At most `rows` examples of a causal model, padded on the right; the first again in rows that are left.

    They must all ask at equally many positions: what the vocabulary is projected on has a shape, too.
    """
    padded = [replace(each, ids=(*each.ids, *(0,) * (width - len(each.ids)))) for each in examples]
    padded += padded[:1] * (rows - len(padded))
    return collate(lm, padded, range(rows))
