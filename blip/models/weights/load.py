"""Loads a checkpoint into a model: matches names, resizes embeddings, and reports all differences."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import chain
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip.models.weights.files import WeightsError, read_tensors
from blip.models.weights.names import Spelling, huggingface, huggingface_blip2, lavis, official, one_image, own
from blip.models.weights.source import fetched

WITHOUT_MEANING = ("*.position_ids", "text_encoder_m.*.crossattention.*")
"""Tensors of the reference's files without effect on results: position ids, and the teacher's cross-attention."""

TRAINING_STATE = ("*_m.*", "temp", "image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue")
"""Tensors of the reference's files that only training uses."""

HEADS = ("vision_proj.*", "text_proj.*", "itm_head.*")
"""The heads of ITC and ITM."""


@dataclass(frozen=True)
class Allowed:
    """Expected differences between a checkpoint and a model, as glob patterns of names.

    `unused` are names in the file; `missing` are names in the model, whose tensors keep their initial values.
    """

    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __or__(self, other: Self) -> "Allowed":
        return Allowed(self.unused + other.unused, self.missing + other.missing)


NOTHING = Allowed()


@dataclass(frozen=True)
class LoadReport:
    """The result of loading a checkpoint: every tensor of file and model."""

    source: str
    loaded: tuple[str, ...]
    """Loaded tensors, in our names."""
    unused: tuple[str, ...]
    """Names in the file without a tensor in the model."""
    missing: tuple[str, ...]
    """Our names without a tensor in the file."""
    resized: Mapping[str, str]
    """Resized position or word embeddings: `(1, 197, 768) -> (1, 577, 768)`."""
    mismatched: Mapping[str, str] = field(default_factory=dict)
    """Our names whose shape in the file differs; these tensors keep their initial values."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        lines += [
            f"  {what}: {', '.join(names)}"
            for what, names in (("unused", self.unused), ("missing", self.missing))
            if names
        ]
        lines += [
            f"  {what} {name}: {change}"
            for what in ("resized", "mismatched")
            for name, change in getattr(self, what).items()
        ]
        return "\n".join(lines)


def load_weights(model: nn.Module, source: str, allowed: Allowed = NOTHING) -> LoadReport:
    """Loads a model from a source of weights (`fetched`): in our format, the reference's or that of transformers.

    Raises WeightsError that names unused, missing and mismatched tensors, unless they are `allowed`.
    """
    with fetched(source) as path:
        tensors, spelling = recognise_spelling(
            read_tensors(path), model, (own, official, huggingface, lavis, huggingface_blip2)
        )
        return fill(model, tensors, spelling, source, allowed)


def recognise_spelling(
    tensors: Mapping[str, Tensor], model: nn.Module, spellings: Sequence[Spelling]
) -> tuple[Mapping[str, Tensor], Spelling]:
    """Removes a wrapper's prefix (`module.`, `_orig_mod.`) from all names, and returns the tensors and their spelling.

    Chooses the prefix and spelling that match most of the model's parameters; on a tie, the shortest prefix, none
    first.
    """
    names = [name for name, _ in model.named_parameters()]

    def found(tensors: Mapping[str, Tensor], spelling: Spelling) -> int:
        return sum(bool(stored_keys(name, tensors, spelling)) for name in names)

    candidates = [without_prefix(tensors, prefix) for prefix in ("", *prefixes(tensors))]
    return max(((c, spelling) for c in candidates for spelling in spellings), key=lambda pair: found(*pair))


def prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the prefixes that most names share, of up to three components: `module.`, `module._orig_mod.`.

    The shortest comes first.
    """
    parts = [name.split(".")[:-1] for name in tensors]
    counts = Counter(".".join(part[:depth]) + "." for part in parts for depth in range(1, min(len(part), 3) + 1))
    return sorted((prefix for prefix, count in counts.items() if 2 * count > len(tensors)), key=len)


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()} if prefix else tensors


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], spelling: Spelling, source: str, allowed: Allowed = NOTHING
) -> LoadReport:
    """Copies tensors into the model's parameters and buffers by their names in a spelling; shared ones are copied once.

    Raises WeightsError before the first copy if the difference is not `allowed`.
    """
    names: dict[Tensor, list[str]] = defaultdict(list)
    for name, parameter in chain(model.named_parameters(remove_duplicate=False), model.named_buffers()):
        names[parameter].append(name)
    filled: dict[Tensor, Tensor] = {}
    used, missing, resized, mismatched, differing = (
        set[str](),
        list[str](),
        dict[str, str](),
        dict[str, str](),
        list[str](),
    )
    for parameter, its_names in names.items():
        keys = [key for name in its_names for key in stored_keys(name, tensors, spelling)]
        used.update(keys)
        if not keys:
            missing.extend(its_names)
            continue
        tensor = tensors[keys[0]]
        differing += [f"{keys[0]} and {key}" for key in keys[1:] if not torch.equal(tensor, tensors[key])]
        fitted = fit_shape(its_names[0], tensor, parameter)
        if fitted is None:
            mismatched |= dict.fromkeys(its_names, shape_change(tensor, parameter))
            continue
        if fitted is not tensor:
            resized |= dict.fromkeys(its_names, shape_change(tensor, parameter))
        filled[parameter] = fitted
    unused = [key for key in tensors if key not in used]
    loaded = tuple(name for parameter in filled for name in names[parameter])
    report = LoadReport(source, loaded, tuple(unused), tuple(missing), resized, mismatched)
    check_report(report, differing, allowed)
    with torch.no_grad():
        for parameter, tensor in filled.items():
            parameter.copy_(tensor)
    return report


def stored_keys(name: str, tensors: Mapping[str, Tensor], spelling: Spelling) -> list[str]:
    """Returns the names of a parameter in the file; both cross-attentions of NLVR2 may map to a single one."""
    return [key for key in spelling(name) if key in tensors] or [
        key for key in spelling(one_image(name)) if key in tensors
    ]


def fit_shape(name: str, tensor: Tensor, parameter: Tensor) -> Tensor | None:
    """Returns the tensor in the parameter's shape, with position embeddings resized; None if it does not fit.

    Positions of longer texts than the file's keep their initial values.
    """
    if tensor.shape == parameter.shape:
        return tensor
    if (
        name.endswith("embeddings.position.weight")
        and tensor.shape[1:] == parameter.shape[1:]
        and len(tensor) < len(parameter)
    ):
        return torch.cat([tensor, parameter.detach()[len(tensor) :].to(tensor)])
    if (
        name.endswith("pos_embed")
        and tensor.shape[-1] == parameter.shape[-1]
        and all(grid_side(t.shape[1]) for t in (tensor, parameter))
    ):
        return resize_positions(tensor, parameter.shape[1])
    return None


def grid_side(positions: int) -> int | None:
    """Returns the grid side of a square image with this number of positions, including [CLS]; None if not square."""
    root = math.isqrt(positions - 1)
    return root if root * root == positions - 1 else None


def resize_positions(positions: Tensor, length: int) -> Tensor:
    """Resizes position embeddings `(1, 1 + G G, D)` to `(1, length, D)`, bicubic; the [CLS] position is kept."""
    old, new = grid_side(positions.shape[1]), grid_side(length)
    assert old is not None
    assert new is not None
    grid = positions[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def shape_change(tensor: Tensor, parameter: Tensor) -> str:
    return f"{tuple(tensor.shape)} -> {tuple(parameter.shape)}"


def check_report(report: LoadReport, differing: Sequence[str], allowed: Allowed) -> None:
    """Raises WeightsError that names all differences that are not allowed.

    `differing` are tied parameters whose tensors in the file differ; these are never allowed.
    """
    unused = unlisted(report.unused, allowed.unused + WITHOUT_MEANING)
    missing, mismatched = unlisted(report.missing, allowed.missing), unlisted(report.mismatched, allowed.missing)
    problems = [
        f"{what}: {name_some(names, names)}"
        for what, names in (("not in the model", unused), ("not in the file", missing))
        if names
    ]
    if mismatched:
        problems.append(
            f"of another shape: {name_some([f'{name} {report.mismatched[name]}' for name in mismatched], mismatched)}"
        )
    if differing:
        pairs = [f"{names} are one tensor in the model but differ in the file" for names in differing]
        problems.append(f"{name_some(pairs, differing)}: does model.share fit it?")
    if problems:
        raise WeightsError(
            f"{report.source} does not fit the model (tensors that fit: {len(report.loaded)}): "
            f"{'; '.join(problems)}. If this is "
            "intended, allow unused or missing tensors by name or pattern (init.allow_unused and init.allow_missing in "
            "training, `blip import --set allow_unused=[NAME]`)"
        )


FEW = 6
"""Maximum number of tensors that a message lists by name; more are grouped by the model's parts."""


def name_some(texts: Sequence[str], names: Sequence[str]) -> str:
    """Returns a list of tensors for a message.

    More than FEW are grouped by part of the model, each with its first tensor's text and its count.
    """
    if len(texts) <= FEW:
        return ", ".join(texts)
    sections: dict[str, list[str]] = defaultdict(list)
    for text, name in zip(texts, names, strict=True):
        sections[name.partition(".")[0]].append(text)
    ranked = sorted(sections.items(), key=lambda item: -len(item[1]))
    said = [f"{own[0]} and {len(own) - 1} more of {section}.*" if len(own) > 1 else own[0] for section, own in ranked]
    rest = (
        [f"and {sum(len(own) for _, own in ranked[FEW:])} more in {len(ranked) - FEW} other parts"]
        if len(ranked) > FEW
        else []
    )
    return f"{', '.join([*said[:FEW], *rest])} ({len(texts)} tensors)"


def unlisted(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]
