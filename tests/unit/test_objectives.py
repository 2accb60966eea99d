"""Which examples a step is taken on: shares of a batch, and epochs over everything."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from factedit.objectives import Step, epoch_rounds, failing_rounds, unmodified_beside

SIZES = st.integers(1, 40)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60, unique=True), SIZES, st.floats(0, 0.95), SIZES)
def test_each_failing_example_comes_once_a_pass_with_the_asked_share_of_unmodified_ones(
    failing: list[int], unmodified: int, share: float, size: int
) -> None:
    steps = list(failing_rounds(failing, unmodified, share, size, generator()))
    assert sorted(i for chosen, _ in steps for i in chosen) == sorted(failing)
    for chosen, beside in steps:
        # The nearest whole number of unmodified examples to the asked share.
        assert abs(len(beside) - len(chosen) * share / (1 - share)) <= 0.5
        assert all(0 <= i < unmodified for i in beside)


@given(st.integers(1, 200), st.floats(0, 0.95), st.integers(2, 64))
def test_a_batch_is_hardly_larger_than_asked(failing: int, share: float, size: int) -> None:
    for chosen, beside in failing_rounds(range(failing), 1000, share, size, generator()):
        # One modified example a batch at least, and that with all that its share brings along.
        assert len(chosen) + len(beside) <= max(size + 0.5 / (1 - share) + 1, 1 + unmodified_beside(1, share))


def test_one_half_is_as_many_of_either_kind() -> None:
    steps = list(failing_rounds(range(64), 1000, 0.5, 64, generator()))
    assert [(len(chosen), len(beside)) for chosen, beside in steps] == [(32, 32), (32, 32)]


def test_unmodified_examples_are_drawn_anew_and_none_twice_while_there_are_enough() -> None:
    steps = list(failing_rounds(range(64), 1000, 0.5, 64, generator()))
    assert steps[0][1] != steps[1][1]
    assert all(len(set(beside)) == len(beside) for _, beside in steps)


def test_few_unmodified_examples_are_used_equally_often() -> None:
    (step,) = failing_rounds(range(10), 4, 0.5, 64, generator())
    assert sorted(step[1].count(i) for i in range(4)) == [2, 2, 3, 3]


def test_without_unmodified_facts_there_is_nothing_beside() -> None:
    assert all(beside == [] for _, beside in failing_rounds(range(9), 0, 0.5, 4, generator()))
    assert all(beside == [] for _, beside in failing_rounds(range(9), 5, 0.0, 4, generator()))


@given(SIZES, st.integers(0, 40), SIZES)
def test_an_epoch_is_every_example_once_in_batches_of_the_size(
    modified: int, unmodified: int, size: int
) -> None:
    steps: list[Step] = list(epoch_rounds(modified, unmodified, size, generator()))
    assert sorted(i for chosen, _ in steps for i in chosen) == list(range(modified))
    assert sorted(i for _, beside in steps for i in beside) == list(range(unmodified))
    assert all(len(chosen) + len(beside) == size for chosen, beside in steps[:-1])


def test_two_epochs_are_shuffled_differently_and_alike_for_a_seed() -> None:
    one = generator()
    first, second = (list(epoch_rounds(30, 30, 8, one)) for _ in range(2))
    assert first != second
    assert first == list(epoch_rounds(30, 30, 8, generator()))
