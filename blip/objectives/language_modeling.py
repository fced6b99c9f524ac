"""Language modeling loss (LM) of texts given their images (BLIP, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The target of padding and prompt, which the loss leaves out."""


def next_token_targets(ids: Tensor, mask: Tensor, prompt: int = 1) -> Tensor:
    """Returns the next tokens `(B, L - 1)` of positions 0 to L - 2, IGNORED for padding and for tokens of the prompt.

    `prompt` is the prompt's length with the first special token, so 1 means no prompt.
    """
    targets = ids.masked_fill(~mask, IGNORED)
    targets[:, :prompt] = IGNORED
    return targets[:, 1:]


def spoken_targets(ids: Tensor, mask: Tensor, skip: Tensor) -> Tensor:
    """Returns the ids `(B, L)` that are to be said: IGNORED for padding and a row's first tokens, `skip` `(B,)`."""
    given = torch.arange(ids.shape[1], device=ids.device)[None] < skip[:, None]
    return ids.masked_fill(~mask | given, IGNORED)


def token_losses(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Returns each token's cross-entropy `(B, L)` in nats with label smoothing, 0 for ignored targets.

    Logits are `(B, L, vocabulary)`. Smoothing bounds the loss from below: by 1.3577 for 0.1 and BERT's 30,524 tokens.
    """
    flat_logits = logits.flatten(0, 1).float()
    options = {"reduction": "none", "label_smoothing": smoothing, "ignore_index": IGNORED}
    losses = F.cross_entropy(flat_logits, targets.flatten(), **options)
    return losses.view_as(targets)


def caption_loss(logits: Tensor, targets: Tensor, smoothing: float, tokens: Tensor | None = None) -> Tensor:
    """Returns LM, the smoothed cross-entropy per predicted token.

    `tokens`, 0-dim, replaces the batch's own token count, if several batches share one mean.
    """
    count = (targets != IGNORED).sum() if tokens is None else tokens
    return token_losses(logits, targets, smoothing).sum() / count.clamp(min=1)


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns each text's log-probability `(B,)`: the sum over its predicted tokens, without smoothing."""
    return -token_losses(logits, targets, 0.0).sum(1)
