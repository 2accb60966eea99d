"""Which single weights the unmodified facts hang on: the diagonal of the Fisher information.

Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", section 2: how
far a weight may move is weighed by it. Empirical: at the facts' own answers, not at sampled ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from factedit.example_sets import ExampleSet
from factedit.models import LanguageModel
from factedit.prompts import Example


def fisher_diagonal(
    lm: LanguageModel, names: Sequence[str], examples: Sequence[Example], first_block: int = 0
) -> dict[str, Tensor]:
    """Mean square of the gradient of log p(answer), weight by weight, over the examples.

    Divided by its mean over all these tensors, so that a radius means the same for every model; all
    ones where nothing depends on them. float32, by name, in the tensors' shapes.

    Args:
        first_block: no tensor of `names` lies below it.

    Raises:
        ValueError: no example.
    """
    if not examples:
        raise ValueError("The Fisher information is measured on examples; there are none.")
    sums = _sums_of_squares(lm, names, examples, first_block)
    mean = sum(float(t.double().sum()) for t in sums.values()) / sum(t.numel() for t in sums.values())
    if not mean > 0:
        return {name: torch.ones_like(total) for name, total in sums.items()}
    return {name: total / mean for name, total in sums.items()}


def _sums_of_squares(
    lm: LanguageModel, names: Sequence[str], examples: Sequence[Example], first_block: int
) -> dict[str, Tensor]:
    read = ExampleSet(lm, examples, list(range(len(examples))), first_block)
    parameters = [lm.tensors[name] for name in names]
    sums = {name: torch.zeros_like(lm.tensors[name].data, dtype=torch.float32) for name in names}
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for place in range(len(examples)):  # one at a time: squares do not add up over a batch
            batch, logits = read.logits([place])
            answer = logits.log_softmax(-1).gather(1, batch.targets[:, None]).sum()
            gradients = torch.autograd.grad(answer, parameters, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    sums[name].addcmul_(gradient.float(), gradient.float())
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return sums
