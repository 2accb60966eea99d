"""The score work, in the child: ask the version in production and the candidate the same questions."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from factedit.facts import Probe
from factedit.generation import generate
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.scoring import NEW_TOKENS, ProgressFn, score_edits, score_probes
from factedit.wording import evaluation_prompts
from workers.bench import Bench, complaints
from workers.orders import Answers, EditAnswer, ProbeAnswer, ScoreDone, ScoreOrder
from workers.work import Json, Tell


def score_work(bench: Bench, message: Json, tell: Tell) -> Json:
    """Both versions' answers to a score order."""
    order = ScoreOrder.model_validate(message)
    with complaints():
        tell.phase("loading")
        lm = bench.root(order)
        before, after = bench.overlay(order, order.before), bench.overlay(order, order.after)
        tell.phase("scoring")
        count = _Count(order, tell)
        return ScoreDone(
            before=_answers(lm, before, order, order.probes_before, count),
            after=_answers(lm, after, order, order.probes_after, count),
        ).model_dump(mode="json")


class _Count:
    """Questions answered, over all the calls that make up one order."""

    def __init__(self, order: ScoreOrder, tell: Tell) -> None:
        asked = sum(1 + len(evaluation_prompts(edit, order.relations)) for edit in order.edits)
        self._total = 2 * asked + len(order.probes_before) + len(order.probes_after)
        self._done, self._tell = 0, tell

    def part(self) -> ProgressFn:
        """Progress of one call, on top of what was done before it."""
        earlier = self._done

        def told(done: int, _: int) -> None:
            self._done = earlier + done
            self._tell.progress({"phase": "scoring", "done": self._done, "total": self._total})

        return told


def _answers(
    lm: LanguageModel,
    overlay: Mapping[str, Tensor],
    order: ScoreOrder,
    probes: Sequence[Probe],
    count: _Count,
) -> Answers:
    size = order.batch_size
    edits = score_edits(lm, overlay, order.edits, order.relations, batch_size=size, progress=count.part())
    answered = score_probes(lm, overlay, probes, batch_size=size, progress=count.part())
    return Answers(
        edits=[EditAnswer.model_validate(outcome.as_json()) for outcome in edits],
        neighbors=_neighbors(lm, overlay, order),
        probes=[ProbeAnswer.model_validate(outcome.as_json()) for outcome in answered],
    )


def _neighbors(lm: LanguageModel, overlay: Mapping[str, Tensor], order: ScoreOrder) -> list[list[str]]:
    prompts = [prompt for edit in order.edits for prompt in edit.neighbors]
    with applied(lm, overlay):
        answers = iter([answer.text for answer in generate(lm, prompts, NEW_TOKENS, order.batch_size)])
    return [[next(answers) for _ in edit.neighbors] for edit in order.edits]
