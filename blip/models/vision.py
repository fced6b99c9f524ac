"""The image encoder: timm's vision transformer, whose full token sequence goes to cross-attention."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip.config import Config


class VisionConfig(Config):
    size: int = 224
    """Height and width of the images in pixels."""
    patch: int = 16
    """Height and width of a patch in pixels."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    drop_path: float = 0.0
    """Stochastic depth: rises linearly from 0 to this rate over the blocks."""
    init_std: float = 0.02
    """Standard deviation of the initial weights; about 1/sqrt(width) lets small models learn."""
    position_std: float = 0.02
    """Standard deviation of the initial position embeddings; about 1 lets small models see early where things stand."""
    checkpoint_last: int = 0
    """Recompute the activations of this many last blocks in the backward pass, to save memory."""


class VisionEncoder(VisionTransformer):
    """A pre-norm ViT without pooling (BLIP, section 3.1); its parameters bear timm's names."""

    def __init__(self, cfg: VisionConfig):
        super().__init__(
            img_size=cfg.size,
            patch_size=cfg.patch,
            embed_dim=cfg.width,
            depth=cfg.depth,
            num_heads=cfg.heads,
            drop_path_rate=cfg.drop_path,
            num_classes=0,
            global_pool="",
        )
        self.checkpoint_from = cfg.depth - cfg.checkpoint_last
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=cfg.init_std)
        assert self.cls_token is not None
        assert self.pos_embed is not None
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=cfg.position_std)

    def forward(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (no masks here)
        """Encodes normalised images `(B, 3, H, W)` to tokens `(B, 1 + patches, D)`, the [CLS] token first.

        Of frames `(B, F, 3, H, W)` the tokens are concatenated: `(B, F (1 + patches), D)` (BLIP, section 5.6).
        """
        frames = images.flatten(0, -4)
        x = self.norm_pre(self._pos_embed(self.patch_embed(frames)))
        for i, block in enumerate(self.blocks):
            recompute = self.training and i >= self.checkpoint_from
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        x = self.norm(x)
        return x.reshape(images.shape[0], -1, x.shape[-1])
