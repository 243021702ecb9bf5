"""Bytecode for the tests alone where Python is told to write none.

This process and each that a test starts would compile torch and all of its like anew; so they keep what they compiled beside
pytest's own notes, and no folder of sources is written to.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Modules that tests wrote are read by nobody again.
    atexit.register(shutil.rmtree, sys.pycache_prefix + tempfile.gettempdir(), ignore_errors=True)
