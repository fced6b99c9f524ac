"""Image-text contrastive learning (ITC) with soft targets of a momentum teacher (ALBEF, section 3.2; BLIP, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """A ring of the teacher's latest features: the negatives that a batch is too small to hold.

    It starts empty and only what was written counts. Any batch size goes with any length: writing wraps around.
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
        """Image features `(Q, D)`, text features `(Q, D)`, image ids `(Q,)`, and which slots were written `(Q,)`, as copies."""
        written = torch.arange(self.length, device=self.ids.device) < self.filled
        return self.image.clone(), self.text.clone(), self.ids.clone(), written

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Writes the features `(N, D)` of a batch gathered over all ranks; of a batch longer than the ring the end stays."""
        image, text, ids = image[-self.length :], text[-self.length :], ids[-self.length :]
        slots = (torch.arange(len(ids), device=ids.device) + self.pointer) % self.length
        self.image[slots], self.text[slots], self.ids[slots] = image.float(), text.float(), ids
        self.pointer.copy_((self.pointer + len(ids)) % self.length)
        self.filled.copy_((self.filled + len(ids)).clamp(max=self.length))

    @torch.no_grad()
    def fill_at_random(self) -> None:
        """Fills the ring with random unit vectors, as the reference starts; for parity alone."""
        for feature in (self.image, self.text):
            feature.copy_(F.normalize(torch.randn_like(feature), dim=-1))
        self.filled.fill_(self.length)


def soft_targets(teacher_logits: Tensor, positive: Tensor, alpha: float) -> Tensor:
    """Mixes what the teacher sees with what is known: `alpha softmax(teacher) + (1 - alpha) positive / row sum`, all `(B, N)`."""
    hard = positive.float() / positive.sum(1, keepdim=True)
    return alpha * teacher_logits.softmax(1) + (1 - alpha) * hard


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy between target distributions and logits, both `(B, N)`; a key at -inf does not count."""
    log_probabilities = logits.log_softmax(1).masked_fill(logits.isinf(), 0.0)
    return -(targets * log_probabilities).sum(1).mean()


def contrastive_loss(i2t: Tensor, t2i: Tensor, teacher_i2t: Tensor, teacher_t2i: Tensor, positive: Tensor, alpha: float) -> Tensor:
    """ITC: the soft cross-entropy of both directions, averaged.

    Logits `(B, N)` of the student and of the teacher against the same keys; `positive` `(B, N)` is True where a key belongs to the row.
    Keys that must not count stand at -inf in all four.
    """
    loss_i2t = soft_cross_entropy(i2t, soft_targets(teacher_i2t, positive, alpha))
    loss_t2i = soft_cross_entropy(t2i, soft_targets(teacher_t2i, positive, alpha))
    return (loss_i2t + loss_t2i) / 2
