"""Which way a fine-tuning method takes its steps, and what is measured for that."""

from collections.abc import Callable

from factedit.curvature import Covariance, HalfPreconditioner, NoCurvature
from factedit.kronecker import kronecker_factors
from factedit.low_curvature import LowCurvature
from factedit.steps import AdamSteps, NaturalAdamSteps, ProjectedSteps, StepRule
from factedit.task import EditingError, EditTask

TEXTS = 100
"""How many running texts the curvature is measured on, beside the anchors; as many as in CrispEdit's runs."""
CRISP_BETAS = (0.9, 0.999)
"""Adam's, in those runs."""


def step_rules(task: EditTask) -> Callable[[], StepRule]:
    """What makes a fresh step rule; call it under the root.

    Raises:
        EditingError: the rule is for matrices, or measured on unmodified facts, and there are none.
    """
    method, rule = task.method, task.plan.preset.rule
    if rule == "adam":
        return lambda: AdamSteps(method.learning_rate)
    try:
        if rule == "projected_adam":
            project = _low_curvature(task)
            return lambda: ProjectedSteps(project, AdamSteps(method.learning_rate, CRISP_BETAS))
        half = HalfPreconditioner(task.lm, _covariance(task), method.damping)
        return lambda: NaturalAdamSteps(half, method.learning_rate, method.max_steps)
    except NoCurvature as error:
        raise EditingError(f"{error} Use the method constrained_ftm for this model.") from error


def _covariance(task: EditTask) -> Covariance:
    covariance = task.background(task.plan.names)
    if covariance.tokens == 0:
        raise _nothing_to_measure_on(task)
    return covariance


def _low_curvature(task: EditTask) -> LowCurvature:
    """Of the root, on running text and anchors.

    CrispEdit's runs read Wikipedia, with its next tokens as labels; they train MLP-out matrices at
    relative depths 0.61 to 0.74 on each edit's own prompt, for 25 epochs at a learning rate of 5e-4, with
    gamma from 0.8 to 0.99; a sequence adds the factors of its earlier edits. Ours are the root's own text
    and anchors, sampled labels, upper blocks, all wordings, the ball, the number and length of steps, and
    gamma within that range; the ledger's edits are trained on again.
    """
    texts = [*task.texts.texts[:TEXTS], *task.anchors[: task.plan.anchors.count]]
    if not texts:
        raise _nothing_to_measure_on(task)
    names, first = task.plan.names, min(task.plan.blocks)
    factors = kronecker_factors(task.lm, names, texts, task.seed, first)
    return LowCurvature(task.lm, factors, 1 - task.method.damping)


def _nothing_to_measure_on(task: EditTask) -> EditingError:
    return EditingError(
        f"`{task.method.name}` needs unmodified facts to measure what is to be left alone; give anchors."
    )
