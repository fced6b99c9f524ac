"""Language modeling (LM): each next word of the text of an image (BLIP, section 3.2)."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A target that is not predicted: padding or prompt."""


def next_token_targets(ids: Tensor, mask: Tensor, prompt: int = 1) -> Tensor:
    """Targets `(B, L - 1)` of the logits of positions 0 to L - 2: the next token, ignored where it is padding or of the `prompt`.

    The prompt's length counts the first token, so 1 means that there is none.
    """
    targets = ids.masked_fill(~mask, IGNORED)
    targets[:, :prompt] = IGNORED
    return targets[:, 1:]


def token_losses(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy `(B, L)` with label smoothing of each token, zero where ignored; logits `(B, L, vocabulary)`.

    Smoothing leaves a floor: with 0.1 and BERT's 30,524 words no prediction, however good, comes below 1.3577 nats.
    """
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", label_smoothing=smoothing, ignore_index=IGNORED
    )
    return flat.view_as(targets)


def caption_loss(logits: Tensor, targets: Tensor, smoothing: float, tokens: Tensor | None = None) -> Tensor:
    """LM: smoothed cross-entropy per predicted token.

    `tokens` replaces this batch's own count of them where several batches share one mean.
    """
    count = (targets != IGNORED).sum() if tokens is None else tokens
    return token_losses(logits, targets, smoothing).sum() / count.clamp(min=1)


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability `(B,)` of each whole text: the sum over its predicted tokens, without smoothing."""
    return -token_losses(logits, targets, 0.0).sum(1)
