"""Tensor files: safetensors, and PyTorch pickles read without code execution."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from blip.config import ConfigError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights in a folder, in order of preference: a file, or an index of several files."""
INDEX = ".index.json"
"""Suffix of an index."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
AGAIN = "fetch it again from its source"
"""The way out of a damaged file."""
SECTIONS = ("model", "state_dict", "model_state_dict", "module", "net", "weights")
"""Keys of a pickle under which training programs save a model's tensors, beside other state."""


class WeightsError(ConfigError):
    """Weights that cannot be read or do not fit the model; the message names file, tensors and remedy."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors by name of a file, or of the weights in a folder. Raises WeightsError if there are none."""
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in SUFFIXES:
        return read_pickle(path)
    raise WeightsError(
        f"{path}: expected a file ending in {', '.join(SUFFIXES)}, or a folder with one of {', '.join(WEIGHTS)}"
    )


def read_folder(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_parts(folder / name) if name.endswith(INDEX) else read_tensors(folder / name)
    raise WeightsError(f"{folder}: contains no weights; looked for {', '.join(WEIGHTS)}; name the file itself")


def read_parts(index: Path) -> dict[str, Tensor]:
    """Returns the tensors of all files in an index."""
    tensors: dict[str, Tensor] = {}
    for part in parts_of(index.read_bytes(), str(index)):
        if not (index.parent / part).is_file():
            raise WeightsError(f"{index}: names {part}, which is not beside it; fetch all parts of the model")
        tensors |= read_tensors(index.parent / part)
    return tensors


def parts_of(content: bytes, index: str) -> list[str]:
    """Returns the names of the files in an index, all in its folder. Raises WeightsError if the index is invalid."""
    try:
        files = set(json.loads(content)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise WeightsError(
            f"{index}: not an index of weights, or damaged: no `weight_map` of tensors to files ({e!r}); {AGAIN}"
        ) from None
    odd = [
        name for name in files if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIXES)
    ]
    if odd or not files:
        raise WeightsError(
            f"{index}: names {odd[0] if odd else 'no file'!r}, expected names of files beside it; {AGAIN}"
        )
    return sorted(files)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, with the aliases of shared tensors restored from its metadata."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            aliases = file.metadata() or {}
    except Exception as e:  # damaged headers raise many types of exceptions
        raise WeightsError(f"{path}: not a safetensors file, or damaged: {first_line(e)}; {AGAIN}") from None
    return check_not_empty(tensors | {alias: tensors[name] for alias, name in aliases.items() if name in tensors}, path)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a pickle, at its top level or in one of SECTIONS or its only section.

    Ignores other content.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damaged pickles raise many types of exceptions
        raise pickle_error(path, e) from None
    return check_not_empty(section_of(content, path), path)


def tensor_readers(path: Path) -> dict[str, Callable[[], Tensor]]:
    """Returns functions that read the tensors of `read_tensors`, one by one from safetensors, which may be large."""
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), path)
    if found.name.endswith(INDEX):
        parts = [found.parent / part for part in parts_of(found.read_bytes(), str(found))]
        if all(part.is_file() for part in parts):
            return {name: read for part in parts for name, read in tensor_readers(part).items()}
    if found.suffix == ".safetensors":
        try:
            file = safe_open(found, "pt").__enter__()
            names, aliases = list(file.keys()), file.metadata() or {}
        except Exception as e:  # damaged headers raise many types of exceptions
            raise WeightsError(f"{found}: not a safetensors file, or damaged: {first_line(e)}; {AGAIN}") from None
        stored = {name: name for name in names} | {alias: name for alias, name in aliases.items() if name in names}
        if stored:
            return {name: partial(file.get_tensor, key) for name, key in stored.items()}
    tensors = read_tensors(path)
    return {name: partial(tensors.__getitem__, name) for name in tensors}


def pickle_error(path: Path, error: Exception) -> WeightsError:
    """Returns the error for an unreadable pickle.

    If the pickle contains code, the message has a command that converts it to a file of tensors.
    """
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code is None:
        return WeightsError(f"{path}: not a file that torch has written, or damaged ({type(error).__name__}); {AGAIN}")
    command = (
        f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "c = c.state_dict() if isinstance(c, torch.nn.Module) else c; s = c.get('model') or c.get('state_dict') or c; "
        "s = s.state_dict() if isinstance(s, torch.nn.Module) else s; "
        f"torch.save({{k: v for k, v in s.items() if torch.is_tensor(v)}}, "
        f"{str(path.with_name(path.stem + '-tensors.pth'))!r})"
    )
    return WeightsError(
        f"{path}: cannot be read without running code that it names ({code[1]}); if you trust it, write its "
        "tensors to another file, "
        f'where the packages that it was made with are installed, and name that one: python -c "{command}"'
    )


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def section_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the tensors by name in a pickle's content. Raises WeightsError if the choice of section is ambiguous."""
    while isinstance(content, Mapping):
        sections = {name: value for name, value in content.items() if holds_tensors(value)}
        known = [name for name in SECTIONS if name in sections]
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if known:
            content = content[known[0]]
        elif tensors:
            return tensors
        elif len(sections) == 1:
            [content] = sections.values()
        elif sections:
            names = ", ".join(map(repr, sections))
            raise WeightsError(f"{path}: holds tensors under {names}; save the section to load as a file of its own")
        else:
            return {}
    raise WeightsError(f"{path}: contains a {type(content).__name__}, not tensors by name; save a state_dict")


def holds_tensors(value: object) -> bool:
    """Returns whether a value is a mapping with named tensors, directly or nested.

    An optimizer's state has numbers as keys, so it does not count.
    """
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(name, str) and (isinstance(inner, Tensor) or holds_tensors(inner)) for name, inner in value.items()
    )


def check_not_empty(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not tensors:
        raise WeightsError(f"{path}: contains no tensors by name; name the file of a model's weights")
    return tensors


def write_model(model: nn.Module, path: Path) -> None:
    """Saves a model under our names; a shared tensor is stored once, with its other names in the file's metadata.

    Tensors may be views of one buffer, as DeepSpeed creates them.
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
    """Sorts a safetensors file's metadata by key in place, so that equal tensors give equal bytes.

    The library writes the metadata in random order.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(content) != length:
            raise AssertionError(f"the header of {path} would change its length from {length} to {len(content)} bytes")
        file.seek(8)
        file.write(content)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Saves tensors by name, as a pickle with a `model` section if the path ends in `.pth`, else as safetensors."""
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix == ".pth":
        try:
            torch.save({"model": apart}, path)
        except RuntimeError as error:  # by which torch says that it could not write, but not why
            raise OSError(f"torch could not write the file ({first_line(error)})") from None
    else:
        save_file(apart, path, metadata={"format": "pt"})


def tensors_digest(path: Path) -> str:
    """Returns the SHA-256 of the tensors of a file, or of the weights in a folder, by name, type and shape.

    Independent of file format, tensor order and metadata. Raises WeightsError if there are no tensors.
    """
    total = hashlib.sha256()
    for name, read in sorted(tensor_readers(path).items()):
        tensor = read()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
