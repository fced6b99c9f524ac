"""Image-text matching (ITM): is this the text of this image? (BLIP, section 3.2)"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_negatives(similarity: Tensor, allowed: Tensor, floor: float = 0.0, *, most_likely: bool = False) -> tuple[Tensor, Tensor]:
    """Draws for each row a wrong candidate, the likelier the more similar it is (ALBEF, section 3.2).

    `similarity` `(B, N)` are logits, `allowed` `(B, N)` is False where a candidate is right. The weight of a candidate is its softmax
    over the whole row plus `floor`. Gives candidates `(B,)` and where a row had any `(B,)`; a row without one points at 0 and must not
    count. A row whose allowed weights vanish draws evenly. `most_likely` takes the likeliest instead of a draw.
    """
    weights = (similarity.detach().float().softmax(1) + floor) * allowed
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, allowed.float())
    valid = allowed.any(1)
    if most_likely:
        return weights.argmax(1), valid
    weights[~valid, 0] = 1.0  # multinomial raises on an empty row
    return torch.multinomial(weights, 1)[:, 0].where(valid, torch.zeros_like(weights[:, 0], dtype=torch.long)), valid


def matching_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Mean cross-entropy of logits `(N, 2)` against labels `(N,)` over the rows that are `valid` `(N,)`."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * valid).sum() / valid.sum()
