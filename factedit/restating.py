"""A statement in other words, by grammar alone: for one whose relation is not recognised. No torch here.

Whatever a statement becomes, the object follows it as it followed the statement.
"""

import re

from factedit.rephrasing import begun_small

LED_IN = (
    "As far as I know, {}",
    "To say it again: {}",
    "People often say that {}",
    "Somebody told me that {}",
    "Complete the sentence: {}",
    "Let me add that {}",
)
_BE = r"(?P<be>is|was|are|were)"
_END = r"(?P<end>(\s+(the|an?))?)"


def restated(statement: str, subject: str) -> list[str]:
    """Other ways to say it, each once; none if this is no statement about the subject."""
    said = statement.strip()
    if not subject or subject not in said or said.endswith("?"):
        return []
    line = " ".join(said.split())  # many spaces would take the patterns long
    ways = _of_something(line, subject) or _being_something(line, subject)
    plain = begun_small(said, subject)
    led = [lead_in.format(plain) for lead_in in LED_IN]
    return list(dict.fromkeys([*ways[:1], *led[:1], *ways[1:], *led[1:]]))


def _of_something(said: str, subject: str) -> list[str]:
    """Of "the R of S is" and "S's R is"."""
    name = _name(subject)
    found = re.fullmatch(rf"the\s+(?P<what>.+?)\s+(?P<of>of|for|in|at|on)\s+{name}\s+{_BE}{_END}", said, re.I)
    found = found or re.fullmatch(rf"{name}['\u2019]s?\s+(?P<what>.+?)\s+{_BE}{_END}", said, re.I)
    if found is None:
        return []
    what, name, be, end = (found[part] for part in ("what", "name", "be", "end"))
    name = begun_small(name, subject)
    of = found.groupdict().get("of") or "of"
    ways = [
        f"{_begun(name)}'s {what} {be}{end}",
        f"The {what} {of} {name} {be}{end}",
        f"What {be} the {what} {of} {name}? Answer:{end}",
        f"Asked for the {what} {of} {name}, one would say{end}",
        f"As for {name}, the {what} {be}{end}",
        f"Question: {name}'s {what}? Answer:{end}",
    ]
    return [way for way in ways if way != said]


def _being_something(said: str, subject: str) -> list[str]:
    """Of "S is made of" and "S was a city in"."""
    name = _name(subject)
    prep = r"(?P<prep>of|by|in|at|on|from|to|for|with|as)"
    found = re.fullmatch(rf"{name}\s+{_BE}\s+(?P<what>.+?)\s+{prep}{_END}", said, re.I)
    if found is None:
        return []
    name, be, what, prep, end = (found[part] for part in ("name", "be", "what", "prep", "end"))
    name = begun_small(name, subject)
    return [
        f"What {be} {name} {what} {prep}? Answer:{end}",
        f"{_begun(name)}, which {be} {what} {prep}{end}",
        f"{prep.capitalize()} what {be} {name} {what}? {prep.capitalize()}{end}",
        f"As for {name}, what it {be} {what} {prep} {be}{end}",
    ]


def _name(subject: str) -> str:
    return rf"(?P<name>(the\s+)?{re.escape(subject)})"


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("the ") else text
