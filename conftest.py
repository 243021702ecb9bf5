"""How the suite runs: by several processes where all of it is asked for, each computing in one thread; with bytecode of its own.

Where Python is told to write no bytecode, this process and each that a test starts would compile torch and all of its like anew;
so they keep what they compiled beside pytest's own notes, and no folder of sources is written to.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

# Before torch is imported, here and in what tests start: several processes of several threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start import `tests` by name, and a library that is installed here has a package of that name too.
sys.path.insert(0, str(Path(__file__).parent))
WORKERS = 4  # at most: each holds torch and what it tests in memory

if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Modules that tests wrote are read by nobody again.
    atexit.register(shutil.rmtree, sys.pycache_prefix + tempfile.gettempdir(), ignore_errors=True)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """None for some tests, which run in this process: a debugger works there, and nothing is imported twice."""
    if config.args_source != pytest.Config.ArgsSource.TESTPATHS or config.option.keyword:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, WORKERS) if cores > 1 else 0
