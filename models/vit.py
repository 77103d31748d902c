"""A small vision transformer: pre-norm blocks, class token, learned positions.

The structure is that of ViT and DeiT, so what the accelerator and its compiler need for this model is what
they need for the family: patch embedding by a strided convolution, one fused query/key/value projection, GELU
between the two linear layers of the MLP, LayerNorm before each half-block and before the classifier.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint

__all__ = ["FASHION", "ViT", "ViTConfig", "load_checkpoint", "save_checkpoint"]

_FORMAT = "moevit-vit-1"


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of a vision transformer.

    Parameters
    ----------
    image_height, image_width
        Image size in pixels; both must be multiples of `patch_size`.
    channels
        Image channels.
    patch_size
        Side of the square patches in pixels.
    dim
        Width of a token; must be a multiple of `heads`.
    depth
        Number of transformer blocks.
    heads
        Attention heads per block.
    hidden
        Width between the two linear layers of a block's MLP.
    classes
        Number of logits.

    Raises
    ------
    ValueError
        A value is not a positive integer, or does not divide as it must.
    """

    image_height: int = 28
    image_width: int = 28
    channels: int = 1
    patch_size: int = 4
    dim: int = 64
    depth: int = 4
    heads: int = 2
    hidden: int = 256
    classes: int = 10

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        for name in ("image_height", "image_width"):
            value = getattr(self, name)
            if value % self.patch_size:
                raise ValueError(f"{name} must be a multiple of patch_size {self.patch_size}, not {value}")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads {self.heads}, not {self.dim}")

    @property
    def patches(self) -> int:
        return (self.image_height // self.patch_size) * (self.image_width // self.patch_size)

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


#: The shipped model: 28x28 grey images, 49 patches and a class token, 205 k parameters.
FASHION = ViTConfig()


class Attention(nn.Module):
    """Multi-head self-attention with one fused query/key/value projection."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer that classifies images.

    Parameters
    ----------
    config
        Its shape.

    Members
    -------
    forward(image)
        ``image`` is float32 ``[batch, channels, height, width]`` with pixels in [0, 1] (no further
        normalisation); the result is the logits, float32 ``[batch, classes]``.
    """

    def __init__(self, config: ViTConfig = FASHION) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(config.channels, config.dim, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dim))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x[:, 0])


def save_checkpoint(model: ViT, path: str) -> None:
    """Write the configuration and the weights of `model`."""
    checkpoint.save(model, model.config, _FORMAT, path)


def load_checkpoint(path: str) -> ViT:
    """Read what `save_checkpoint` wrote, in evaluation mode; ModelError if it is no such file."""
    return checkpoint.load(path, _FORMAT, "moevit.models.train", lambda c: ViT(ViTConfig(**c)))
