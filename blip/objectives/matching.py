"""Image-text matching loss (ITM) and its hard negatives (BLIP, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_negatives(
    similarity: Tensor, allowed: Tensor, floor: float = 0.0, *, most_likely: bool = False
) -> tuple[Tensor, Tensor]:
    """Samples a negative candidate for each row, in proportion to its similarity (ALBEF, section 3.2).

    `similarity` `(B, N)` are logits; `allowed` `(B, N)` is False for positives. A candidate's weight is its softmax
    over the whole row plus `floor`; if all allowed weights of a row are 0, they are equal. `most_likely` takes the
    candidate of the largest weight instead.

    Returns candidates `(B,)`, and whether a row has one `(B,)`; rows without one have index 0 and must be left out.
    """
    weights = (similarity.detach().float().softmax(1) + floor) * allowed
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, allowed.float())
    valid = allowed.any(1)
    if most_likely:
        return weights.argmax(1), valid
    weights[~valid, 0] = 1.0  # multinomial raises on an empty row, and then draws index 0
    return torch.multinomial(weights, 1)[:, 0], valid


def matching_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Returns the mean cross-entropy of logits `(N, 2)` against labels `(N,)` over rows that are `valid` `(N,)`."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * valid).sum() / valid.sum()
