"""What kind of thing an object is: a language, a country, an instrument, a date. No torch here."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

FIT, MISFIT, UNKNOWN = 0.25, -0.6, -0.1
"""What an object's type says for a relation: of the type wanted, of another one, of none we know."""
DATE, ANY = "date", "any"
_DATE = re.compile(
    r"(?=.*\d)(january|february|march|april|may|june|july|august|september|october|november|december|"
    r"\d|st|nd|rd|th|century|bce?|ad|[\s,./-])+"
)


@cache
def load_types() -> Mapping[str, frozenset[str]]:
    """The closed types (`factedit/catalogue/types`): their members, folded, by type."""
    files = (resources.files("factedit") / "catalogue" / "types").iterdir()
    return {
        file.name.removesuffix(".txt"): frozenset(map(_folded, file.read_text(encoding="utf-8").splitlines()))
        for file in files
    }


def types_of(new_object: str) -> frozenset[str]:
    """The types an object is known to be of; "mayor of Riga" counts as a mayor."""
    folded = _folded(new_object).removeprefix("the ")
    names = {folded, folded.partition(" of ")[0]} - {""}
    types = {name for name, members in load_types().items() if names & members}
    return frozenset(types | ({DATE} if _DATE.fullmatch(folded) else set()))


def fit(wanted: str | None, types: frozenset[str]) -> float:
    """How well an object of these types fits; `wanted` names types joined by "|", or None for any."""
    names = set((wanted or ANY).split("|"))
    if types & names:
        return FIT
    if ANY in names:
        return MISFIT if DATE in types else 0.0
    return MISFIT if types else UNKNOWN


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
