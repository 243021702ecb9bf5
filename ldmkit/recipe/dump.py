"""Recipes as YAML that reads back equal, without secrets."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ldmkit.recipe.strict_yaml import scalar

REDACTED = "<redacted>"

_SECRET_KEY = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|(api|access|private)_?key)$", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(\w+://)[^/\s@]+@")
_TOKEN_IN_URL = re.compile(r"([?&](?:token|key|api_key|signature|sig)=)[^&\s]+", re.IGNORECASE)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with text in quotes where our reader would take it for a number or a constant."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(scalar(value), str)
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(str, _text)


def to_yaml(value: Any) -> str:
    """YAML text; leaves in flow style, keys in the order given."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
    return str(text)


def redacted(value: Any, key: str = "") -> Any:
    """JSON values without the text of keys such as `token` and without credentials inside URLs."""
    if isinstance(value, dict):
        return {name: redacted(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [redacted(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if _SECRET_KEY.search(key) and value:
        return REDACTED
    return _TOKEN_IN_URL.sub(rf"\1{REDACTED}", _USER_IN_URL.sub(rf"\1{REDACTED}@", value))
