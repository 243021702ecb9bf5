"""What a person writes for guidance, as weights over branches.

Three forms (s, s_i: scales; e: predictions; scale 1 is off):

- a number s: ``e_null + s (e_all - e_null)``, where null drops every slot that training dropped;
- an ordered mapping ``{low_res: 1.5, text: 7}`` that chains: ``e_0 + sum of s_i (e_i - e_(i-1))``; e_0 drops the named
  slots, e_i has the first i of them back;
- an expression ``null + 1.5*(low_res - null) + 7*(low_res+text - low_res)``: names joined by ``+`` are one branch that
  keeps these slots, ``null`` keeps none of them, ``all`` keeps every slot of the model.

Slots that the mapping or the expression does not name stay conditioned in every branch (``all`` names every slot, unless
the expression has no other than ``null``: then null is the number's).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Mapping, Sequence

from ldmkit.conditioning import DroppedSlots, KeptSlots
from ldmkit.errors import UsageError
from ldmkit.guidance.classifier_free import named
from ldmkit.messages import nearest

Guidance = float | Mapping[str, float] | str

_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_LONGEST = 1000  # characters; an expression of more is a mistake, and Python's parser recurses


def parse(guidance: Guidance, slots: Sequence[str], dropped: Collection[DroppedSlots]) -> dict[KeptSlots, float]:
    """Weights over branches, each named by the slots it keeps; they sum to 1 and none is zero.

    Args:
        guidance: a number, a mapping slot -> scale, or an expression (this module's docstring).
        slots: the model's slots.
        dropped: the subsets of slots that training dropped.

    Raises UsageError for an unknown slot, an expression that is none, weights that do not sum to 1, and a branch that
    training never showed (with the dropout line to change).
    """
    every = frozenset(slots)
    droppable = frozenset().union(*dropped) & every
    if isinstance(guidance, str):
        weights = _expression(guidance, every, droppable)
    elif isinstance(guidance, Mapping):
        weights = _chain(guidance, every)
    else:
        scale = _scale(guidance, "guidance")
        weights = {every: scale, every - droppable: 1 - scale} if droppable else {every: 1.0}
        if scale != 1 and not droppable:
            raise _without_dropout(guidance, slots)
    weights = {kept: weight for kept, weight in weights.items() if abs(weight) > 1e-9}
    for kept in weights:
        if kept != every and every - kept not in dropped:
            raise _never_shown(every - kept, kept, droppable, dropped)
    return weights


def _chain(scales: Mapping[str, float], every: KeptSlots) -> dict[KeptSlots, float]:
    """``e_0 + sum of s_i (e_i - e_(i-1))``, collected by branch."""
    for name in scales:
        _known(name, every)
    values = [1.0, *(_scale(scale, f"guidance of {name}") for name, scale in scales.items()), 0.0]
    kept = every.difference(scales)
    weights = {kept: values[0] - values[1] if scales else 1.0}
    for i, name in enumerate(scales, start=1):
        kept = kept | {name}
        weights[kept] = values[i] - values[i + 1]
    return weights


def _expression(text: str, every: KeptSlots, droppable: DroppedSlots) -> dict[KeptSlots, float]:
    names = frozenset(_NAME.findall(text)) - {"null", "all"}
    for name in names:
        _known(name, every)
    if "all" in _NAME.findall(text) and names:
        names = every
    governed = names or droppable
    value = _Reader(text, governed, every - governed).read()
    if isinstance(value, float):
        return parse(value, tuple(every), [frozenset(), droppable])
    total = sum(value.values())
    if not abs(total - 1) < 1e-6:
        raise UsageError(
            f"the weights of guidance {text!r} sum to {total:g}; they must sum to 1",
            hint="Start from one branch and add differences: null + 3*(text - null).",
        )
    return value


class _Reader:
    """Reads an expression into a number, or into weights over branches. Nothing is ever evaluated as code."""

    def __init__(self, text: str, governed: KeptSlots, stay: KeptSlots) -> None:
        self.text, self.governed, self.stay = text, governed, stay

    def read(self) -> float | dict[KeptSlots, float]:
        # A slot may have the name of a Python keyword (`class`), so every name gets a prefix.
        try:
            if len(self.text) > _LONGEST:
                raise self._error(f"it is longer than {_LONGEST} characters")
            tree = ast.parse(_NAME.sub(r"s_\g<0>", self.text).strip(), mode="eval")
            return self._node(tree.body)
        except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
            raise self._error("it cannot be read") from error

    def _node(self, node: ast.expr) -> float | dict[KeptSlots, float]:
        if (subset := self._subset(node)) is not None:
            return {subset | self.stay: 1.0}
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as number):
                return _scale(number, f"a scale in {self.text!r}")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._times(-1.0, self._node(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._node(operand)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._sum(self._node(left), self._node(right))
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return self._sum(self._node(left), self._times(-1.0, self._node(right)))
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return self._times(self._node(left), self._node(right))
            case _:
                pass
        raise self._error("only slots, numbers, + - * and parentheses are allowed")

    def _subset(self, node: ast.expr) -> KeptSlots | None:
        """The slots that a name, or names joined by +, keep; None for anything else."""
        match node:
            case ast.Name(id="s_null"):
                return frozenset()
            case ast.Name(id="s_all"):
                return self.governed
            case ast.Name(id=name):
                return frozenset([name.removeprefix("s_")])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first, second = self._subset(left), self._subset(right)
                return first | second if first and second else None  # `null + text` is a sum
            case _:
                return None

    def _times(
        self, first: float | dict[KeptSlots, float], second: float | dict[KeptSlots, float]
    ) -> float | dict[KeptSlots, float]:
        if isinstance(second, float):
            first, second = second, first
        if not isinstance(first, float):
            raise self._error("two branches are multiplied")
        if isinstance(second, float):
            return first * second
        return {kept: first * weight for kept, weight in second.items()}

    def _sum(
        self, first: float | dict[KeptSlots, float], second: float | dict[KeptSlots, float]
    ) -> float | dict[KeptSlots, float]:
        if isinstance(first, float) and isinstance(second, float):
            return first + second
        if isinstance(first, float) or isinstance(second, float):
            raise self._error("a number is added to a branch")
        return {kept: first.get(kept, 0.0) + second.get(kept, 0.0) for kept in {**first, **second}}

    def _error(self, why: str) -> UsageError:
        return UsageError(
            f"guidance {self.text[:80]!r}: {why}",
            hint="An expression looks like null + 1.5*(low_res - null) + 7*(low_res+text - low_res).",
        )


def _scale(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{what} is {value!r}; it must be a finite number (1 is off)")
    return float(value)


def _known(name: str, every: KeptSlots) -> None:
    if name not in every:
        near = nearest(name, every)
        raise UsageError(
            f"guidance names the slot {name!r}; the model has {', '.join(sorted(every)) or 'none'}",
            hint=f"Did you mean {near}?" if near else None,
        )


def _without_dropout(scale: object, slots: Sequence[str]) -> UsageError:
    if not slots:
        return UsageError(f"guidance {scale}: this model has no conditions to be guided by; leave guidance at 1")
    return UsageError(
        f"guidance {scale}: training never dropped a condition of this model, so there is no null to guide away from",
        hint=f"Train with dropout, for instance `conditioners.{slots[0]}.dropout: 0.1`, or leave guidance at 1.",
    )


def _never_shown(
    missing: DroppedSlots, kept: KeptSlots, droppable: DroppedSlots, dropped: Collection[DroppedSlots]
) -> UsageError:
    shown = ", ".join(named(subset) for subset in sorted(dropped, key=sorted) if subset) or "nothing"
    lines = [f"`conditioners.{slot}.dropout: 0.1`" for slot in sorted(missing - droppable)]
    table = f"`{named(missing)}: 0.1` in the recipe's `dropout` table"
    return UsageError(
        f"guidance needs a branch without {named(missing)} (keeping {named(kept)}), which training never showed: "
        f"it dropped {shown}",
        hint=f"Train with {' and '.join(lines)}, or with {table}." if lines else f"Train with {table}.",
    )
