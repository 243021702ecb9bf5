"""The contract as a pytest fixture: `pytest_plugins = ["ldmkit.testing.fixtures"]`. Loads no torch until a test uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(name="check_conditioner")
def contract() -> Callable[..., None]:
    """`ldmkit.testing.check_conditioner`: call it with a conditioner and a sample."""
    from ldmkit.testing.contract import check_conditioner

    checked: Callable[..., Any] = check_conditioner
    return checked
