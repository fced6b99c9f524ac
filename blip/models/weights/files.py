"""Files that hold tensors: safetensors, and PyTorch's pickles read without running what is in them."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from blip.config import ConfigError

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Where a folder keeps its weights, the best first."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class WeightsError(ConfigError):
    """Weights that cannot be read or do not fit; the message names the file, the tensors and the way out."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the weights in a folder, by name. Raises WeightsError if there are none."""
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in SUFFIXES:
        return read_pickle(path)
    raise WeightsError(f"{path}: weights are a file that ends in {', '.join(SUFFIXES)}, or a folder with {' or '.join(WEIGHTS)}")


def read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / INDEX).is_file():
        parts = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        return {name: tensor for part in parts for name, tensor in read(folder / part).items()}
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read(folder / name)
    raise WeightsError(f"{folder}: holds no weights, looked for {', '.join((INDEX, *WEIGHTS))}")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; a tensor that was shared when it was saved has all its names again."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            aliases = file.metadata() or {}
    except SafetensorError as e:
        raise WeightsError(f"{path}: not a safetensors file, or damaged: {e}") from None
    return tensors | {alias: tensors[name] for alias, name in aliases.items() if name in tensors}


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, those under `model` or `state_dict` where it has such; whatever else it holds is left."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as e:
        raise WeightsError(f"{path}: cannot be read without running code that may be in it, or is damaged: {e}") from None
    for section in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(section), Mapping):
            content = content[section]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def write_model(model: nn.Module, path: Path) -> None:
    """Saves a model in our names; a shared tensor is stored once, its other names stand in the file's metadata.

    Tensors may be views into one buffer, as DeepSpeed leaves them.
    """
    names: dict[tuple[int, torch.Size], str] = {}
    tensors, aliases = {}, {}
    for name, tensor in model.state_dict().items():
        first = names.setdefault((tensor.data_ptr(), tensor.shape), name)
        if first == name:
            tensors[name] = tensor.detach().cpu().contiguous().clone()
        else:
            aliases[name] = first
    save_file(tensors, path, metadata={"format": "pt", **aliases})
    sort_metadata(path)


def sort_metadata(path: Path) -> None:
    """Puts a safetensors file's metadata in the order of their keys, so that equal tensors are equal bytes: the library's is random."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(content) != length:
            raise AssertionError(f"the header of {path} would change its length from {length} to {len(content)} bytes")
        file.seek(8)
        file.write(content)


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Saves tensors by name, as a pickle with a `model` section if the path ends in `.pth`, else as safetensors."""
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix == ".pth":
        torch.save({"model": apart}, path)
    else:
        save_file(apart, path, metadata={"format": "pt"})


def tensors_digest(path: Path) -> str:
    """Returns the SHA-256 of the tensors of a file, or of the weights in a folder, by name, type and shape.

    The kind of file, the order in it, and what it says beside its tensors do not count. Raises WeightsError if there are none.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(read(path).items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
