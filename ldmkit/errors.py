"""The errors a user can fix: what was given, what is allowed, what to do. Loads no torch."""

from __future__ import annotations

from typing import ClassVar


class LdmkitError(ValueError):
    """An error in what the user gave; the command line prints it without a traceback and exits with 2.

    `message` says what was given and what is allowed, `hint` what to do, `where` the place (``recipe.yaml:3:5``, a path).
    """

    code: ClassVar[str] = "usage"
    exit_code: ClassVar[int] = 2
    elsewhere: bool = False  # whether another process of the same run says it to the user

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.where = message, hint, where

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(LdmkitError):
    """A call or a command line that cannot be carried out as given."""


class RecipeError(LdmkitError):
    """A recipe that says something impossible."""

    code = "recipe"


class DataError(LdmkitError):
    """Pictures, captions or labels that cannot be used."""

    code = "data"


class PluginError(LdmkitError):
    """A plugin that is missing, broken or breaks its contract."""

    code = "plugin"


class CheckpointError(LdmkitError):
    """Weights or a run directory that cannot be read or do not fit."""

    code = "checkpoint"


class ResourceError(LdmkitError):
    """Too little disk, memory or no such device."""

    code = "resources"


class OfflineError(LdmkitError):
    """Something that would have to be downloaded and is not there."""

    code = "offline"


class DivergedError(LdmkitError):
    """Numbers that are no longer finite."""

    code = "diverged"
