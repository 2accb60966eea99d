"""The one strict text type: NFC, no control characters, not blank, of bounded length."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

ALLOWED_CONTROLS = "\n\t"


def printable(text: str) -> str:
    """The text in NFC. NUL and lone surrogates never come here: service.api.body refuses them."""
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in ALLOWED_CONTROLS:
            raise ValueError(f"Contains the control character U+{ord(character):04X}; remove it.")
    return unicodedata.normalize("NFC", text)


def clean(text: str) -> str:
    """The text in NFC, which says something."""
    text = printable(text)
    if not text.strip():
        raise ValueError("Is blank; write something, or leave the field out.")
    return text


def trimmed(text: str) -> str:
    return clean(text).strip()


Words = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(trimmed)]
"""A subject, an object, a name of something: spaces at its ends mean nothing."""

PromptText = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(trimmed)]
"""Words to be completed; the answer follows after one space."""

FreePrompt = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(clean)]
"""What a model is asked, taken as it is."""

Reason = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(trimmed)]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Of an alias or a relation: what fits in a path."""

Reference = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(trimmed)]
"""`model`, `model@alias` or `model@ver_…`."""
