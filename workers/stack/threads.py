"""How the processes that compute share the cores: each has a budget of threads, and waits passively.

Measured on 2 cores: two processes with OpenMP's default spinning turned a training step of 1.6 s
into one of 23 s. Where a job and an answer want the same core, the answer comes first: whoever
edits is nicer by NICENESS.
"""

import os

NICENESS = 10


def cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """What holds a process to its budget, whichever libraries it loads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
