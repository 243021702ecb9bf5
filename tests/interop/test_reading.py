"""Files that nobody vouches for: nothing is executed, and every kind of damage is said."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldmkit.errors import CheckpointError
from ldmkit.interop.safe_reading.tensors import read_tensors

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "steps": torch.tensor(7)}


class Payload:
    """Creates a file when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Strange:
    """Something that a trainer leaves in a checkpoint."""


def same(found, expected=STATE):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def archive(path: Path, data: bytes, *, compression=zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
        for name, content in members.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def lightning(
    path: Path, module: str = "pytorch_lightning.callbacks.model_checkpoint", name: str = "ModelCheckpoint"
) -> Path:
    """A checkpoint as Lightning before 1.5 wrote it: `callbacks` is keyed by a class object, which torch alone refuses."""
    torch.save({"state_dict": STATE, "callbacks": {"@": {"best": 1}}}, path)
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    (data,) = (name for name in members if name.endswith("data.pkl"))
    at = b"X\x01\x00\x00\x00@"
    assert at in members[data]
    members[data] = members[data].replace(at, f"c{module}\n{name}\n".encode())
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)
    return path


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_a_torch_checkpoint(tmp_path, wrap):
    torch.save(wrap(STATE), tmp_path / "m.ckpt")
    assert same(read_tensors(tmp_path / "m.ckpt"))


def test_the_format_before_zip_archives(tmp_path):
    torch.save(STATE, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert same(read_tensors(tmp_path / "m.pt"))


def test_safetensors_and_shards(tmp_path):
    save_file(STATE, tmp_path / "m.safetensors")
    assert same(read_tensors(tmp_path / "m.safetensors"))
    shards = tmp_path / "sharded"
    shards.mkdir()
    names = {name: f"part-{i}.safetensors" for i, name in enumerate(STATE)}
    for name, file in names.items():
        save_file({name: STATE[name]}, shards / file)
    (shards / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert same(read_tensors(shards))
    assert same(read_tensors(shards / "m.safetensors.index.json"))
    (shards / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors is missing"):
        read_tensors(shards)


@pytest.mark.parametrize("name", ["../m.safetensors", "/etc/passwd", "part.txt", 3])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, name):
    save_file(STATE, tmp_path / "m.safetensors")
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read_tensors(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    torch.save(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in STATE.items()}, tmp_path / "m"
    )
    assert same(read_tensors(tmp_path / "m"))


def test_the_prefix_of_distributed_training_is_taken_off(tmp_path):
    torch.save({f"module.{name}": value for name, value in STATE.items()}, tmp_path / "m.ckpt")
    assert same(read_tensors(tmp_path / "m.ckpt"))


def test_classes_of_a_trainer_are_stood_in_for(tmp_path):
    path = lightning(tmp_path / "m.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert same(read_tensors(path))


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("posix", "system")]
)
def test_names_of_the_system_are_refused_even_uncalled(tmp_path, module, name):
    with pytest.raises(CheckpointError, match=f"{module}.{name}"):
        read_tensors(lightning(tmp_path / "m.ckpt", module, name))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_is_refused_and_does_not_run(tmp_path, zipped):
    trap = tmp_path / "trap"
    torch.save({"state_dict": STATE, "x": Payload(trap)}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="execut") as caught:
        read_tensors(tmp_path / "m.ckpt")
    assert not trap.exists()
    assert "mkdir" in str(caught.value)
    assert "nothing of it ran" in str(caught.value)
    torch.load(tmp_path / "m.ckpt", weights_only=False)  # it is a real one
    assert trap.exists()


def test_a_bare_pickle_that_executes_is_refused(tmp_path):
    trap = tmp_path / "trap"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "m.ckpt").write_bytes(pickle.dumps(Payload(trap), protocol))
        with pytest.raises(CheckpointError, match=r"execute .*mkdir|is text, not a checkpoint"):
            read_tensors(tmp_path / "m.ckpt")
    assert not trap.exists()


def test_an_object_in_the_old_format_is_named(tmp_path):
    torch.save({"state_dict": STATE, "opt": Strange()}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"an object of .*Strange, and is in torch's old format"):
        read_tensors(tmp_path / "m.ckpt")


def test_a_distributed_checkpoint_is_not_read(tmp_path):
    """Its metadata is a pickle."""
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "trap")))
    (tmp_path / "__0_0.distcp").write_bytes(b"0")
    with pytest.raises(CheckpointError, match="distributed checkpoint of torch"):
        read_tensors(tmp_path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"not a checkpoint at all", "is text, not a checkpoint: 'not a checkpoint at all'"),
        (b'{"error": "Repository not found"}', "is text"),
        (b"\xef\xbb\xbf<html>", "web page"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "not a checkpoint, or it is truncated"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    (tmp_path / "m.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / "m.ckpt")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_truncated_files(tmp_path, share):
    torch.save({"w": torch.randn(300, 100)}, tmp_path / "m.ckpt")
    save_file({"w": torch.randn(300, 100)}, tmp_path / "m.safetensors")
    for name in ("m.ckpt", "m.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CheckpointError, match=r"truncated|cannot be read"):
            read_tensors(tmp_path / name)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = archive(tmp_path / "m.ckpt", b"\0" * 50_000_000, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="compressed"):
        read_tensors(bomb)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match="more than the file holds"):
        read_tensors(tmp_path / "m.ckpt")


@pytest.mark.parametrize("size", [(1 << 40,), (2, 1 << 39)])
def test_a_safetensors_header_that_lies_is_refused(tmp_path, size):
    header = json.dumps({"w": {"dtype": "F32", "shape": list(size), "data_offsets": [0, 4 << 40]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "m.safetensors")


def test_a_header_of_a_terabyte_is_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "m.safetensors")


def test_no_tensors_and_no_file(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_tensors(tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_tensors(tmp_path / "nothing.ckpt")


def test_storages_that_lie_about_their_size_are_refused(tmp_path):
    path = lightning(tmp_path / "m.ckpt")
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    storage = next(name for name in members if name.endswith("data/0"))
    members[storage] = members[storage][:-4]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="bytes and should have"):
        read_tensors(path)
