"""What a model can't be asked, and why."""

from collections.abc import Sequence

from factedit.generation import MAX_MASKS
from factedit.models import LanguageModel
from workers.predictor.errors import BadQuestion


def problem_of(
    lm: LanguageModel, ids: Sequence[int], named: Sequence[Sequence[int]], max_tokens: int
) -> BadQuestion | None:
    """Why a question can't be asked; `ids` and `named` are the tokens of its prompt and of its candidates."""
    if not ids:
        return BadQuestion("The prompt has no tokens; write some text that the model can go on from.")
    lengths = [len(tokens) for tokens in named]
    if 0 in lengths:
        return BadQuestion("A candidate has no tokens.")
    wanted = max([max_tokens if lm.task == "causal" else min(MAX_MASKS, max_tokens) + 1, *lengths])
    room = _context(lm)
    if len(ids) + wanted > room:
        return BadQuestion(
            f"The prompt's {len(ids)} tokens and up to {wanted} more do not fit into the {room} tokens that "
            "the model reads; shorten the prompt or lower max_tokens."
        )
    return None


def _context(lm: LanguageModel) -> int:
    """How many tokens the model reads at most, prompt and answer together."""
    config = lm.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or lm.tokenizer.model_max_length
    if lm.task == "masked":
        positions -= 2  # RoBERTa and its kin leave the first two places empty.
    return int(min(positions, lm.tokenizer.model_max_length))
