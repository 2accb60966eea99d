"""How many files a server may have open: each of its clients is one, and the usual 1024 are too few."""

import resource

MOST = 65_536


def allow_many() -> None:
    """As many as the machine lets this process have without asking anybody."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if most == resource.RLIM_INFINITY else min(most, MOST)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
