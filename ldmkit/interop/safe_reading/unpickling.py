"""A pickle reader that can make tensors and containers, and nothing else.

Checkpoints of Lightning before 1.5 hold class objects (the callbacks), so that torch's own `weights_only` refuses them. Here
every name that a checkpoint asks for and that is not on a short list becomes an empty stand-in: nothing is imported, nothing
is called. Names of Python's own library that no checkpoint has a use for stop the reading, so that a person learns of them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.errors import CheckpointError

LEGACY_PICKLES = 5  # a magic number, a version, the machine, the content, the names of storages
MOST_PICKLE = 256 * 2**20  # bytes of the pickle itself, without the tensors

STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Of Python's own library: what checkpoints hold beside tensors, and as stand-ins only.
HARMLESS = {
    "collections",
    "pathlib",
    "datetime",
    "argparse",
    "_codecs",
    "copyreg",
    "enum",
    "typing",
    "functools",
    "decimal",
}
PLAIN: Mapping[str, type] = {
    name: getattr(__import__("builtins"), name) for name in ("set", "frozenset", "complex", "slice")
}


class StandIn:
    """In place of an object that is not supported."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = None

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    def append(self, value: Any) -> None:
        """Pickles may fill a list subclass."""

    def extend(self, values: Any) -> None:
        """As `append`."""

    def __hash__(self) -> int:
        return id(self)


class DangerousError(Exception):
    """A name that only a malicious checkpoint asks for."""


def read(file: Path, refused: Exception) -> Any:
    """The content of a torch archive that torch refused with `refused`. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(archive)
    except DangerousError as danger:
        raise _dangerous(str(danger), file) from None
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint cannot be read: {_first_line(error)} (torch says: {_first_line(refused)})",
            where=str(file),
            hint="a truncated file has to be downloaded again",
        ) from error


def asked(file: Path) -> str | None:
    """The first name that a file of pickles, one after the other, asks for and a state_dict has no use for. Executes nothing."""
    try:
        with file.open("rb") as stream:
            for _ in range(LEGACY_PICKLES):
                words: list[str] = []
                for code, argument, _ in pickletools.genops(stream):
                    if isinstance(argument, str) and code.name != "GLOBAL":
                        words.append(argument)
                        continue
                    named = argument.split(" ") if code.name == "GLOBAL" and isinstance(argument, str) else words[-2:]
                    if code.name in ("GLOBAL", "STACK_GLOBAL") and len(named) == 2 and not _of_tensors(*named):
                        return ".".join(named)
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        return None  # what comes after the pickles, or no pickle at all
    return None


def _of_tensors(module: str, name: str) -> bool:
    return (module, name) in ALLOWED or (module == "torch" and name in STORAGES)


def refused(name: str, file: Path) -> CheckpointError:
    """The CheckpointError for a checkpoint of the old format that asks for a name which torch does not allow."""
    if _harmless(*name.rpartition(".")[::2]):
        return CheckpointError(
            f"the checkpoint holds an object of {name}, and is in torch's old format, in which only tensors are read",
            where=str(file),
            hint="load it where it was made, and save its state_dict again",
        )
    return _dangerous(name, file)


def _dangerous(name: str, file: Path) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint asks to execute {name} when it is loaded: it was refused, and nothing of it ran",
        where=str(file),
        hint="do not load this file with other software; get the weights as safetensors from a source you trust",
    )


def _harmless(module: str, name: str) -> bool:
    """Whether a name may stand for data; of Python's own library, only what checkpoints hold."""
    if module in ("builtins", "__builtin__"):
        return name in PLAIN
    top = module.partition(".")[0]
    return top in HARMLESS or not (top in sys.stdlib_module_names or top in ("posix", "nt"))


def _read(archive: zipfile.ZipFile) -> Any:
    names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError("there is no data.pkl in the archive")
    if archive.getinfo(names[0]).file_size > MOST_PICKLE:
        raise ValueError(f"its pickle is larger than {MOST_PICKLE // 2**20} MiB")
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder").decode() != sys.byteorder:
        raise ValueError("it was written on a machine of the other byte order")
    return _with_arrays(Reader(archive, root, archive.read(names[0])).load())


class Reader(pickle.Unpickler):
    """Unpickles one archive's `data.pkl`; storages are read when a tensor asks for them."""

    def __init__(self, archive: zipfile.ZipFile, root: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}
        self.stand_ins: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if not _harmless(module, name):
            raise DangerousError(f"{module}.{name}")
        if module in ("builtins", "__builtin__"):
            return PLAIN[name]
        return self.stand_ins.setdefault(f"{module}.{name}", type(str(name), (StandIn,), {}))

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that a tensor asks for: its numbers (n,)."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"a storage of kind {kind!r}")
        if key not in self.storages:
            info = self.archive.getinfo(f"{self.root}data/{key}")
            if info.file_size != count * dtype.itemsize:
                raise ValueError(f"storage {key} has {info.file_size} bytes and should have {count} x {dtype.itemsize}")
            raw = bytearray(self.archive.read(info))
            self.storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor of {tuple(size)} lies outside of its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _DType:
    """A dtype of numpy as a checkpoint writes it down: a name such as f4, and the byte order in its state."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.swapped = str(name), False

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.swapped = state[1] == (">" if sys.byteorder == "little" else "<")

    def made(self) -> np.dtype[Any]:
        """The dtype; raises ValueError where it is none of plain numbers."""
        found = np.dtype(self.name)
        found = found.newbyteorder("S") if self.swapped else found
        if found.kind not in "fiub" or found.hasobject:
            raise ValueError(f"an array of {self.name}")
        return found


class _Array:
    """An array of numpy that is being read: its shape, dtype and bytes come as its state."""

    value: np.ndarray[Any, Any] | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes | bytearray | str):
            raise ValueError("an array that does not say what it holds")
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        flat = np.frombuffer(data, dtype=dtype.made())
        self.value = flat.reshape(shape, order="F" if fortran else "C").astype(flat.dtype.newbyteorder("="))


def _with_arrays(content: Any, depth: int = 0) -> Any:
    """The content with arrays in the place of what read them; mappings alone are looked into."""
    if isinstance(content, _Array):
        return content.value
    if isinstance(content, dict) and depth < 8:
        return {name: _with_arrays(value, depth + 1) for name, value in content.items()}
    return content


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: defaultdict(StandIn),
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): tuple,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
