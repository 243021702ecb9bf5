"""Attributes as tables and people hold them -> the words that hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ldmkit.errors import LdmkitError
from ldmkit.messages import nearest

FLAGS = {False: False, True: True, "0": False, "1": True, "false": False, "true": True, "": False, None: False}


def said(value: Any, words: Sequence[str] | None, error: type[LdmkitError]) -> list[str]:
    """The words of a list, a text "a, b" or JSON, a mapping of words to 0 and 1, or 0 and 1 for each of `words`.

    An empty text or list holds none. Words are not looked up here. Raises `error` for what is none of these.
    """
    value = _opened(value)
    if isinstance(value, Mapping):
        return [str(word) for word, flag in value.items() if _flag(flag, str(word), error)]
    if not isinstance(value, list | tuple | set | frozenset):
        raise error(
            f"attributes: {value!r:.60} is no list of words",
            hint='give a list, "a, b", or a mapping of words to 0 and 1',
        )
    if all(isinstance(word, str) for word in value):
        return list(value)
    if words is None or len(value) != len(words) or not all(isinstance(flag, int | float) for flag in value):
        raise error(
            f"attributes: {list(value)!r:.60} is no list of words",
            hint="give words, or 0 or 1 for each word of `words`, in their order",
        )
    return [word for word, flag in zip(words, value, strict=True) if _flag(flag, word, error)]


def check_known(found: Sequence[str], words: Sequence[str], error: type[LdmkitError]) -> None:
    """Raises `error` for a word that is not one of `words`, with the nearest that is."""
    for word in found:
        if word not in words:
            near = nearest(word, words)
            shown = ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")
            raise error(
                f"attributes: there is no {word!r}; the {len(words)} words are {shown}",
                hint=f"did you mean {near!r}?" if near else None,
            )


def _opened(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return [word.strip() for word in value.split(",") if word.strip()]


def _flag(flag: Any, word: str, error: type[LdmkitError]) -> bool:
    key = flag.lower() if isinstance(flag, str) else flag
    try:
        return FLAGS[key]
    except (KeyError, TypeError):
        raise error(f"attributes: {word} is {flag!r}, and 0 or 1 is needed", hint="numbers are for `numbers`") from None
