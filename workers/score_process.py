"""The score work, in the child: ask the version in production and the candidate the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factedit.facts import Probe
from factedit.generation import asked_again
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied
from factedit.prefix_states import PrefixStates
from factedit.root_answers import RootAnswers
from factedit.scoring import NEW_TOKENS, ProgressFn, score_edits, score_probes
from factedit.word_states import WordStates
from factedit.wording import evaluation_prompts
from workers import kept
from workers.bench import Bench, complaints
from workers.orders import Answers, ScoreDone, ScoreOrder
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
        store, size = bench.store(order.store_dir), order.batch_size
        with (
            kept.states(store, order.root_digest, lm, before, after) as states,
            kept.root_answers(store, order.root_digest, lm, size) as root,
            kept.word_states(store, order.root_digest, lm, before, after) as words,
        ):
            old = _Version(lm, before, order, states, root, words, order.said)
            first = old.answers(order.probes_before, count)
            now_said = order.said | {answer.probe_id: answer.answer for answer in first.probes}
            new = _Version(lm, after, order, states, root, words, now_said, first.neighbors)
            second = new.answers(order.probes_after, count)
        return ScoreDone(before=first, after=second).model_dump(mode="json")


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


@dataclass(frozen=True, slots=True)
class _Version:
    """A version to be asked. `said`, `neighbors`: what one before it answered."""

    lm: LanguageModel
    overlay: Overlay
    order: ScoreOrder
    states: PrefixStates | None
    root: RootAnswers
    words: WordStates | None
    said: Mapping[str, str]
    neighbors: Sequence[Sequence[str]] | None = None

    def answers(self, probes: Sequence[Probe], count: _Count) -> Answers:
        lm, overlay, order = self.lm, self.overlay, self.order
        size = order.batch_size
        edits = score_edits(lm, overlay, order.edits, order.relations, batch_size=size, progress=count.part())
        answered = score_probes(
            lm,
            overlay,
            probes,
            said=self.said,
            states=self.states,
            root=self.root,
            words=self.words,
            batch_size=size,
            progress=count.part(),
        )
        return Answers(
            edits=edits,
            neighbors=self._neighbors(),
            probes=answered,
        )

    def _neighbors(self) -> list[list[str]]:
        prompts = [prompt for edit in self.order.edits for prompt in edit.neighbors]
        said = [answer for each in self.neighbors for answer in each] if self.neighbors is not None else None
        with applied(self.lm, self.overlay):
            answers = iter(asked_again(self.lm, prompts, said, NEW_TOKENS, self.order.batch_size))
            return [[next(answers).text for _ in edit.neighbors] for edit in self.order.edits]
