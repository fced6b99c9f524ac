"""Digests of files, folders and values."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from blip.digest import file_digest, folder_digest, value_digest
from blip.models.weights.files import tensors_digest, write_model


def test_a_file_is_known_by_its_bytes(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_folder_is_known_by_the_names_and_bytes_of_its_files(tmp_path: Path):
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name / "in").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / "in" / file).write_text(text)
        return tmp_path / name

    first = folder_digest(folder("first", a="1", b="2"))
    assert folder_digest(folder("same", b="2", a="1")) == first
    assert folder_digest(folder("renamed", a="1", c="2")) != first
    assert folder_digest(folder("changed", a="1", b="3")) != first
    assert folder_digest(folder("more", a="1", b="2", log="x"), leave_out={"in/log"}) == first


def test_a_value_is_known_without_the_order_of_its_keys():
    assert value_digest({"a": 1, "b": [2.5, None]}) == value_digest({"b": [2.5, None], "a": 1})
    assert value_digest({"a": [1, 2]}) != value_digest({"a": [2, 1]})


class Tied(nn.Module):
    """One tensor with three names: their order in a file's metadata must not vary."""

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.word, self.head, self.other = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.word.weight = nn.Parameter(torch.full((3, 3), value))
        self.head.weight = self.other.weight = self.word.weight


def test_weights_are_known_by_their_tensors_alone(tmp_path: Path):
    write_model(Tied(), tmp_path / "model.safetensors")
    found = tensors_digest(tmp_path / "model.safetensors")
    assert tensors_digest(tmp_path) == found, "a folder is its weights"
    tensors = {f"{name}.weight": torch.ones(3, 3) for name in ("word", "head", "other")}
    save_file(tensors, tmp_path / "apart.safetensors", metadata={"made": "elsewhere"})
    torch.save(tensors, tmp_path / "pickle.pth")
    assert tensors_digest(tmp_path / "apart.safetensors") == tensors_digest(tmp_path / "pickle.pth") == found


def test_every_part_of_a_tensor_counts(tmp_path: Path):
    def digest(name: str, tensor: torch.Tensor) -> str:
        save_file({name: tensor}, tmp_path / "one.safetensors")
        return tensors_digest(tmp_path / "one.safetensors")

    plain = torch.arange(4.0)
    tensors = [
        ("a", plain),
        ("b", plain),
        ("a", plain.view(2, 2)),
        ("a", plain.int()),
        ("a", plain.bfloat16()),
        ("a", plain + 1e-7),
    ]
    tensors += [("a", torch.tensor(0.0)), ("a", torch.zeros(0)), ("a", torch.tensor([True, False]))]
    assert len({digest(name, tensor) for name, tensor in tensors}) == len(tensors)
