"""Processes that compute share the cores politely."""

from workers.stack import threads


def test_waiting_threads_do_not_spin() -> None:
    assert threads.environment(3)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert threads.environment(3)["OMP_NUM_THREADS"] == "3"
