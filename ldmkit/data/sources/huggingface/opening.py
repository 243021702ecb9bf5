"""Opening what the `datasets` library reads: a saved dataset, parquet, JSON, CSV or Arrow files, a folder, a name on the hub."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ldmkit.errors import DataError, LdmkitError, OfflineError
from ldmkit.hub import cache_unless_reached
from ldmkit.images.files import BadSampleError, printable

BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


def library() -> ModuleType:
    """The `datasets` package. Raises `DataError` where it is not installed."""
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise DataError(
            "the data source huggingface reads with the package datasets, which is not installed",
            hint='pip install "ldmkit[datasets]"',
        ) from error


def open_split(path: str, *, config: str | None, split: str, streaming: bool) -> Any:
    """One split, as a `datasets.Dataset` or, `streaming`, an `IterableDataset`.

    Raises `DataError` for what cannot be read, `OfflineError` for a name that is neither here nor can be fetched.
    """
    datasets = library()
    here = os.path.expanduser(path)
    saved = _saved(here)
    try:
        with _quiet(datasets):
            if saved:
                found = datasets.load_from_disk(here)
                found = _split_of(found, split, here)
                return found.to_iterable_dataset() if streaming else found
            if os.path.exists(here) or os.path.splitext(path)[1] in BUILDERS:
                return _local(datasets, here, config, split, streaming)
            return _from_hub(datasets, path, config, split, streaming)
    except LdmkitError:
        raise
    except Exception as error:  # its errors, and those of what it calls, have no common base
        raise _failure(path, error) from error


def _saved(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))


def _split_of(found: Any, split: str, path: str) -> Any:
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise DataError(
            f"there is no split {split!r}; there are {', '.join(found)}", hint="data.split", where=printable(path)
        )
    return found[split]


def _local(datasets: ModuleType, path: str, config: str | None, split: str, streaming: bool) -> Any:
    builder = BUILDERS.get(os.path.splitext(path)[1])
    if builder is None:
        return datasets.load_dataset(path, config, split=split, streaming=streaming)
    return datasets.load_dataset(builder, data_files={split: path}, split=split, streaming=streaming)


def _from_hub(datasets: ModuleType, path: str, config: str | None, split: str, streaming: bool) -> Any:
    name, _, revision = path.partition("@")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise DataError(
            "there is no such file or folder", hint="give a path, or owner/name on the hub", where=printable(path)
        )
    with cache_unless_reached(name, "dataset", datasets.config):
        return datasets.load_dataset(name, config, split=split, streaming=streaming, revision=revision or None)


@contextmanager
def _quiet(datasets: ModuleType) -> Iterator[None]:
    """Without its own progress bars, which would tear ours."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def fetched(url: str) -> bytes:
    """The bytes of one remote file. Raises `BadSampleError` where it cannot be had."""
    fsspec = importlib.import_module("fsspec")  # which datasets brings
    try:
        with fsspec.open(url, "rb") as file:
            content: bytes = file.read()
    except Exception as error:  # each protocol has errors of its own
        raise BadSampleError(url, _first_line(error)) from error
    return content


def _failure(path: str, error: Exception) -> LdmkitError:
    if isinstance(error, ConnectionError):
        return OfflineError(
            f"{path} is no file or folder here, not in the local cache, and the hub cannot be reached",
            hint=f"where there is a network: hf download {path.partition('@')[0]} --repo-type dataset --local-dir DIR; "
            "then data.path is that directory",
        )
    return DataError(f"cannot be read: {_first_line(error)}", hint="data.path, data.config, data.split", where=path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
