"""A question in other words, by grammar alone: for any relation, recognised or not. No torch here.

Every way to put it is led in by some words of its own, as people do who talk to an assistant.
"""

import re

LED_IN = (
    "Tell me, {}?",
    "Do you happen to know {}?",
    "One more thing: {}?",
    "I forgot, {}?",
    "Quick question, {}?",
    "Please say {}?",
    "Somebody asked me {}?",
    "To be precise, {}?",
)
_ASKING = r"(?P<wh>what|which|who|whom|whose|where|when|how)\b"
_FRONTED = re.compile(
    rf"(?P<prep>in|on|at|to|from|by|for|with|of|under)\s+{_ASKING}(?P<rest>.*)", re.IGNORECASE
)
_OF = re.compile(
    r"(?P<wh>what|which|who)\s+(?P<verb>is|was|are|were)\s+(?P<what>the\s+.+?)\s+(?P<of>of|for)\s+(?P<whose>.+)",
    re.IGNORECASE,
)
_SWAPPED = {"what": "which", "which": "what"}


def rephrased(question: str, subject: str) -> list[str]:
    """Other ways to ask, each once; none if this is no question about the subject."""
    if not question.rstrip().endswith("?") or subject not in question:
        return []
    asked = question.rstrip().removesuffix("?").rstrip()
    ways = [way for way in _ways(begun_small(asked, subject)) if subject in way]
    # Each way once, and then again after other words, until every lead-in was taken.
    rounds = [ways[i % len(ways)] for i in range(len(LED_IN))]
    return [lead_in.format(way) for lead_in, way in zip(LED_IN, rounds, strict=True)]


def _ways(asked: str) -> list[str]:
    """The question itself, and what can be made of it by moving its parts."""
    ways = [asked]
    if found := _FRONTED.fullmatch(asked):
        ways.append(f"{found['wh']}{found['rest']} {found['prep']}")
    if found := _OF.fullmatch(asked):
        ways.append(f"{found['what']} {found['of']} {found['whose']} {found['verb']} {found['wh']}")
        if found["of"] == "of":
            ways.append(f"{found['wh']} {found['verb']} {found['whose']}'s {found['what'][4:]}")
    return list(dict.fromkeys(way for each in ways for way in (each, _swapped(each))))


def _swapped(asked: str) -> str:
    """With "which" for the first "what", and the other way round."""
    return re.sub(r"\b(what|which)\b", lambda m: _SWAPPED[m[0].lower()], asked, count=1, flags=re.IGNORECASE)


def begun_small(text: str, subject: str) -> str:
    """As it stands within a sentence: what it begins with is small, unless that is the subject."""
    return text if text.startswith(subject) else text[:1].lower() + text[1:]
