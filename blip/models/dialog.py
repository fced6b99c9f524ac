"""Visual dialog: a text encoder that reads the dialog and attends to image and caption together (BLIP, section 5.5)."""

import torch
from torch import Tensor, nn

from blip.batch import Tokens
from blip.models.bert import KeysValues, TextTransformer, bidirectional_mask, initialise
from blip.models.med import MEDConfig, replace_first
from blip.models.vision import VisionEncoder


class DialogModel(nn.Module):
    """Image encoder, text encoder of captions and of dialogs, and a head that tells true answers from others.

    Captions are encoded without the image. Where text and image encoder differ in width, a linear map joins them.
    """

    def __init__(self, cfg: MEDConfig):
        super().__init__()
        self.cfg = cfg
        self.visual_encoder = VisionEncoder(cfg.vision)
        self.text_encoder = TextTransformer(cfg.text, cfg.vision.width, cfg.tokens.pad)
        self.itm_head = nn.Linear(cfg.text.width, 2)
        initialise(self.itm_head, cfg.text.init_std)
        self.caption_proj = None
        if cfg.text.width != cfg.vision.width:
            self.caption_proj = nn.Linear(cfg.text.width, cfg.vision.width)
            initialise(self.caption_proj, cfg.text.init_std)

    def encode(self, images: Tensor, caption: Tokens) -> tuple[Tensor, Tensor]:
        """Returns what dialogs attend to, tokens of images and then of captions `(B, N + C, D)`, and its mask.

        Images are normalised, `(B, 3, H, W)`; captions are `(B, C)`.
        """
        tokens = self.visual_encoder(images)
        words = self.text_encoder(caption.ids, bidirectional_mask(caption.mask))
        if self.caption_proj is not None:
            words = self.caption_proj(words)
        seen = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return torch.cat([tokens, words.to(tokens.dtype)], 1), torch.cat([seen, caption.mask], 1)

    def match(self, dialog: Tokens, cross: list[KeysValues], mask: Tensor | None = None) -> Tensor:
        """Returns logits `(R, 2)` of dialogs that end in a candidate answer, column 1 for a true one.

        `cross` comes from `text_encoder.cross_keys_values`; `mask` `(R, N + C)` is of its tokens, none for all.
        """
        ids = replace_first(dialog.ids, self.cfg.tokens.enc)
        cross_mask = None if mask is None else bidirectional_mask(mask)
        hidden = self.text_encoder(ids, bidirectional_mask(dialog.mask), cross, cross_mask)
        return self.itm_head(hidden[:, 0])
