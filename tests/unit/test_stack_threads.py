"""Processes that compute share the cores politely."""

import pytest

from workers.stack import threads


@pytest.mark.parametrize(("available", "given"), [(1, 1), (2, 1), (4, 3), (16, 15)])
def test_the_worker_gets_the_cores_that_the_predictor_leaves(available: int, given: int) -> None:
    assert threads.worker_threads(predictor_threads=1, available=available) == given


def test_waiting_threads_do_not_spin() -> None:
    assert threads.environment(3)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert threads.environment(3)["OMP_NUM_THREADS"] == "3"
