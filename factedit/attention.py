"""Attention chosen by name: a model's is another for a while, and nothing else of it is touched."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from factedit.models import LanguageModel

HARMLESS = frozenset(
    {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "past_key_values"}
)
"""What models tell their attention besides, that is nothing to us; with anything else we do not answer."""


class UnusualAttention(RuntimeError):
    """The model's attention is not the usual causal one over all that came before."""


@contextmanager
def attention_of(lm: LanguageModel, name: str) -> Iterator[None]:
    """The model attends by what is registered under this name, meanwhile."""
    configs = {id(config): config for config in (lm.model.config, lm.model.config.get_text_config())}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def check_usual(more: Mapping[str, Any]) -> None:
    """Raises UnusualAttention if a model tells its attention what must not be ignored."""
    strange = [name for name, given in more.items() if given is not None and name not in HARMLESS]
    if strange:
        raise UnusualAttention(f"attention with {', '.join(strange)}")
