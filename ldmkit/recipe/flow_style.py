"""A value as YAML in flow style, on one line. Loads no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

WORDS = ("true", "false", "null", "yes", "no", "on", "off", ".", "..")


def flow(value: Any) -> str:
    """A value as YAML on one line; texts are quoted where they need it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_/.][A-Za-z0-9_/.-]*", value) and value not in WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
