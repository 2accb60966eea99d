"""A four-block model that has memorised a few of the catalogue's facts: for tests and for the docs.

It is trained in seconds, the same way each time, and saved as an ordinary Hugging Face folder, so
that whatever is shown on it runs through the very code that edits a real model.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from factedit.facts import Fact
from factedit.models import load_model
from factedit.prompts import answer_example, batches
from factedit.relations import Catalogue, builtin_catalogue

SPECIAL = ("<unk>", "<eos>", "<pad>")


def toy_facts(relation: str = "capital", count: int = 60) -> list[Fact]:
    """The catalogue's facts that the toy model knows."""
    return [fact for fact in builtin_catalogue().facts if fact.relation == relation][:count]


def write_toy_model(folder: Path, *, steps: int = 150, seed: int = 0) -> None:
    """Train the toy model on `toy_facts()` in all the relation's templates, and save it to `folder`."""
    catalogue = builtin_catalogue()
    facts = toy_facts()
    lines = [(prompt, fact.object) for fact in facts for prompt in _prompts(catalogue, fact)]
    words = sorted({word for prompt, target in lines for word in f"{prompt} {target}".split()})
    _tokenizer(words).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words) + len(SPECIAL),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        # With the usual 0.02 so small a model learns nothing for its first hundreds of steps.
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<eos>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    _memorise(folder, lines, steps, seed)


def _memorise(folder: Path, lines: list[tuple[str, str]], steps: int, seed: int) -> None:
    lm = load_model(folder, device="cpu")
    lm.model.train().requires_grad_(True)
    examples = [answer_example(lm, prompt, target) for prompt, target in lines]
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randperm(len(examples), generator=generator)[:128].tolist()
        batch = next(batches(lm, [examples[i] for i in chosen], 128))
        logits = lm.model(input_ids=batch.input_ids).logits[batch.rows, batch.cols]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    lm.model.save_pretrained(folder)


def _prompts(catalogue: Catalogue, fact: Fact) -> list[str]:
    relation = catalogue.relations[fact.relation]
    return relation.training_prompts(fact.subject) + relation.evaluation_prompts(fact.subject)


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    )
