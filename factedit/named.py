"""Where a text names somebody. No torch here."""

import re


def last_named(text: str, name: str) -> tuple[int, int] | None:
    """Where the name's last mention begins and ends, whatever its letter case; None: it is not there.

    Whole words come first, so that no nationality names an Ali. Scripts without spaces have none: then
    the last of any kind counts.
    """
    letters = re.escape(name)
    for sought in (rf"(?<!\w){letters}(?!\w)", letters):
        # What comes before takes as much as it can, so that the last one is found.
        if found := re.match(rf"(?s:.*)({sought})", text, re.IGNORECASE):
            return found.span(1)
    return None
