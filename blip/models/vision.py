"""The image encoder: timm's vision transformer without pooling. Cross-attention takes all of its tokens."""

from typing import Self

from pydantic import Field, model_validator
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip.config import Config


class VisionConfig(Config):
    size: int = Field(default=224, ge=1, le=4096)
    """Height and width of the images in pixels."""
    patch: int = Field(default=16, ge=1, le=4096)
    """Height and width of a patch in pixels."""
    width: int = Field(default=768, ge=1, le=65536)
    depth: int = Field(default=12, ge=1, le=1000)
    heads: int = Field(default=12, ge=1, le=1024)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth: rises linearly from 0 to this rate over the blocks."""
    init_std: float = Field(default=0.02, gt=0, le=10)
    """Standard deviation of the initial weights; about 1/sqrt(width) lets small models learn."""
    position_std: float = Field(default=0.02, ge=0, le=10)
    """Standard deviation of the initial position embeddings; about 1 helps small models to learn positions early."""
    checkpoint_last: int = Field(default=0, ge=0)
    """Recompute the activations of this many last blocks in the backward pass, to save memory."""

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        if self.size % self.patch:
            raise ValueError(
                f"vision.size is {self.size}, not divisible by patches of {self.patch} pixels: make it a multiple "
                "of vision.patch"
            )
        if self.width % self.heads:
            raise ValueError(
                f"vision.width is {self.width}, not divisible by {self.heads} heads: make it a multiple of vision.heads"
            )
        if self.checkpoint_last > self.depth:
            raise ValueError(
                f"vision.checkpoint_last is {self.checkpoint_last}, but there are {self.depth} blocks: lower it to "
                "vision.depth"
            )
        return self


class VisionEncoder(VisionTransformer):
    """A pre-norm ViT without pooling (BLIP, section 3.1). Parameters have timm's names."""

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

        Tokens of frames `(B, F, 3, H, W)` are concatenated to `(B, F (1 + patches), D)` (BLIP, section 5.6).
        """
        frames = images.flatten(0, -4)
        x = self.norm_pre(self._pos_embed(self.patch_embed(frames)))
        for i, block in enumerate(self.blocks):
            recompute = self.training and i >= self.checkpoint_from
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        x = self.norm(x)
        return x.reshape(images.shape[0], -1, x.shape[-1])
