"""Image-text contrastive loss (ITC) with soft targets from a momentum model (ALBEF, section 3.2; BLIP, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """A ring buffer of the momentum model's latest features, which serve as further negatives.

    It starts empty, and slots that were never written do not count. Any batch size works with any length.
    """

    def __init__(self, length: int, width: int):
        super().__init__()
        self.length = length
        self.image: Tensor
        self.text: Tensor
        self.ids: Tensor
        self.pointer: Tensor
        self.filled: Tensor
        self.register_buffer("image", torch.zeros(length, width))
        self.register_buffer("text", torch.zeros(length, width))
        self.register_buffer("ids", torch.full((length,), -100))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.long))

    def contents(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns copies: image and text features `(Q, D)`, image ids `(Q,)`, and which slots were written `(Q,)`."""
        written = torch.arange(self.length, device=self.ids.device) < self.filled
        return self.image.clone(), self.text.clone(), self.ids.clone(), written

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Overwrites the oldest entries with features `(N, D)` of the global batch, or with its last `length` rows."""
        image, text, ids = image[-self.length :], text[-self.length :], ids[-self.length :]
        slots = (torch.arange(len(ids), device=ids.device) + self.pointer) % self.length
        self.image[slots] = image.float()
        self.text[slots] = text.float()
        self.ids[slots] = ids
        self.pointer.copy_((self.pointer + len(ids)) % self.length)
        self.filled.copy_((self.filled + len(ids)).clamp(max=self.length))

    @torch.no_grad()
    def fill_at_random(self) -> None:
        """Fills the queue with random unit vectors, as the reference does; for parity alone."""
        for feature in (self.image, self.text):
            feature.copy_(F.normalize(torch.randn_like(feature), dim=-1))
        self.filled.fill_(self.length)


def soft_targets(teacher_logits: Tensor, positive: Tensor, alpha: float) -> Tensor:
    """Returns `alpha softmax(teacher_logits) + (1 - alpha) positive / row sum of positive`, `(B, N)`."""
    hard = positive.float() / positive.sum(1, keepdim=True)
    return alpha * teacher_logits.softmax(1) + (1 - alpha) * hard


def smoothed_targets(positive: Tensor, excluded: Tensor, smoothing: float) -> Tensor:
    """Returns `(1 - smoothing) positive / row sum of positive + smoothing / N` over the keys that are not excluded.

    All are `(B, N)`; in a row that excludes keys, N counts the others.
    """
    hard = positive.float() / positive.sum(1, keepdim=True)
    even = (~excluded).float() / (~excluded).sum(1, keepdim=True)
    return (1 - smoothing) * hard + smoothing * even


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over rows of the cross-entropy of logits against target distributions, both `(B, N)`.

    Keys whose logit is -inf contribute nothing.
    """
    log_probabilities = logits.log_softmax(1).masked_fill(logits.isinf(), 0.0)
    return -(targets * log_probabilities).sum(1).mean()


def contrastive_loss(
    i2t: Tensor, t2i: Tensor, teacher_i2t: Tensor, teacher_t2i: Tensor, positive: Tensor, alpha: float
) -> Tensor:
    """Returns ITC, the mean of the soft cross-entropies image-to-text and text-to-image.

    All logits are `(B, N)` over the same keys, of the model and of the momentum model. `positive` `(B, N)` is True for
    keys that belong to the row. Excluded keys have -inf in all four logits.
    """
    loss_i2t = soft_cross_entropy(i2t, soft_targets(teacher_i2t, positive, alpha))
    loss_t2i = soft_cross_entropy(t2i, soft_targets(teacher_t2i, positive, alpha))
    return (loss_i2t + loss_t2i) / 2
