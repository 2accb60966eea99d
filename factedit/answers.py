"""When an answer is right: normalised comparison of texts. No torch here."""

import re
import string
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b(?![+#])")
_LETTER = r"[^\W\d_]"
_PUNCTUATION = re.escape(string.punctuation)
_OPENING = re.escape("".join(sorted({*string.punctuation} - {*"+-"})))
_SIGNS = re.compile(
    rf"(?<={_LETTER})(?P<mark>\+{{2,}}+|\+(?!\d)|\#)(?!{_LETTER}|[+#])"
    rf"|(?:(?<={_LETTER})(?=\+)|(?<!\S)(?<!\d\s)[{_OPENING}]*)(?P<sign>[-+\N{{MINUS SIGN}}])(?=\d)"
    rf"|[{_PUNCTUATION}]"
)
_END = re.compile(r"[\n.;!?]|, ")


def normalise(text: str) -> str:
    """Lower case, no accents' variants, punctuation or articles, single spaces (SQuAD's convention).

    Signs that tell one answer from another stay: "C++", "F#" and "-5" are not "C", "F" and "5".
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_ARTICLES.sub(" ", _SIGNS.sub(_kept, folded)).split())


def _kept(found: re.Match[str]) -> str:
    if found["mark"]:
        return f"{found['mark']} "
    if found["sign"]:
        return " +" if found["sign"] == "+" else " -"
    return " "


def exactly(answer: str, target: str) -> bool:
    """Whether the whole answer is the target: how an edit is scored, natural stop included."""
    return normalise(answer) == normalise(target)


def begins_with(answer: str, targets: tuple[str, ...]) -> bool:
    """Whether the answer opens with one of the targets, at a word's end: how a probe is scored.

    An unedited model goes on talking after its answer, so more may follow.
    """
    words = normalise(answer).split()
    return any(words[: len(t)] == t for t in (normalise(target).split() for target in targets) if t)


def mentions(answer: str, target: str) -> bool:
    """Whether the answer says the target anywhere, in whole words: how an erased fact is found out.

    A target that is nothing but an article or punctuation is never found; see `says_something`.
    """
    words, sought = normalise(answer).split(), normalise(target).split()
    starts = range(len(words) - len(sought) + 1) if sought else ()
    return any(words[start : start + len(sought)] == sought for start in starts)


def says_something(target: str) -> bool:
    """Whether anything is left of the target once it is normalised, so that answers can be held to it."""
    return normalise(target) != ""


def clause(answer: str) -> str:
    """The answer up to its first sentence or clause end: what 'unchanged' compares."""
    text = answer.strip()
    end = _END.search(text)
    return text[: end.start()] if end else text
