"""Neutral lead-in sentences: an edit is also trained after one of these, so that it holds in context.

Written for Factedit; none comes from an evaluation set.
"""

PREFIXES = (
    "The meeting was moved to Thursday because of the rain.",
    "She closed the book and looked out of the window.",
    "A new bridge was opened to traffic last spring.",
    "He had never thought about it in that way before.",
    "Prices rose slightly in the second quarter.",
    "The old clock in the hall had stopped again.",
    "Most visitors arrive by train in the early morning.",
    "Researchers published the results after two years of work.",
    "It was the third time that the team had won away from home.",
    "The recipe calls for two onions and a little salt.",
    "Nobody could remember who had left the light on.",
    "Several members of the committee disagreed with the plan.",
    "The museum is closed on Mondays.",
    "After a long pause, the audience began to clap.",
    "The software was updated without any trouble.",
    "In the north the winters are long and dry.",
    "Her brother works in a small shop near the station.",
    "The report was short, but it contained everything that mattered.",
    "They planted forty trees along the river.",
    "The second edition corrects a number of small mistakes.",
    "Students may hand in their essays until Friday.",
    "The ship left the harbour shortly before dawn.",
    "We talked about music for most of the evening.",
    "The price includes breakfast and the use of the garden.",
)
