"""What a worker's child can do, by name. Importing this loads torch."""

from collections.abc import Mapping
from functools import partial

from transformers.utils.logging import disable_progress_bar

from workers.bench import Bench
from workers.edit_process import edit_work
from workers.score_process import score_work
from workers.work import Work


def works() -> Mapping[str, Work]:
    """The works, which share one bench, so that a root loaded for one is there for the other."""
    disable_progress_bar()  # the log is no terminal
    bench = Bench()
    return {"edit": partial(edit_work, bench), "score": partial(score_work, bench)}
