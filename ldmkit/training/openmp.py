"""How the threads of OpenMP wait, which is said before torch is imported. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

POLICY = "OMP_WAIT_POLICY"
USERS = (POLICY, "GOMP_SPINCOUNT")  # and all of Intel's runtime: KMP_BLOCKTIME, KMP_LIBRARY ...


def wait_passively(environment: MutableMapping[str, str] | None = None) -> None:
    """Threads that wait for another one sleep, unless the user's own variables say how they wait.

    By default they spin, and where another program has one of the cores, the thread that all wait for gets no core to run on: a
    step takes 20 to 300 times as long. Read once, when the runtime's library is loaded: with torch.
    """
    own = os.environ if environment is None else environment
    if not any(name in USERS or name.startswith("KMP_") for name in own):
        own[POLICY] = "PASSIVE"
