"""A small residual network."""

from collections.abc import Mapping

from flax import linen as nn

from digits_jax.models.layers import (
    SLOW,
    AdaptiveAveragePool,
    MaxPool,
    SqueezeExcite,
    batch_norm,
    conv,
    dense,
    dropout,
)
from digits_jax.types import Array


class Residual(nn.Module):
    """x + f(x), f = conv3x3 - BatchNorm - ReLU - conv3x3 - BatchNorm (- channel attention).

    Where the number of channels changes, x passes a 1x1 convolution with BatchNorm (He et al. 2016,
    arXiv:1512.03385, option B). A ReLU follows the sum.
    """

    features: int
    squeeze: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shortcut = x
        if x.shape[-1] != self.features:
            shortcut = batch_norm(train, SLOW)(conv(self.features, 1, bias=False)(x))
        y: Array = nn.relu(batch_norm(train, SLOW)(conv(self.features, bias=False)(x)))
        y = batch_norm(train, SLOW)(conv(self.features, bias=False)(y))
        if self.squeeze:
            y = SqueezeExcite(self.squeeze)(y)
        return nn.relu(shortcut + y)


class ResNet(nn.Module):
    """conv3x3 - BatchNorm - ReLU, then stages of residual blocks, global average, layers per head.

    Each stage begins with a 2x2 max pool, cheaper than a strided convolution.
    heads: classes by head; stem: channels of the first convolution; features: channels by stage;
    blocks: residual blocks in each stage; squeeze: reduction of the channel attention, 0 for none.
    """

    heads: Mapping[str, int]
    stem: int = 16
    features: tuple[int, ...] = (32, 64)
    blocks: int = 1
    squeeze: int = 0

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        x: Array = conv(self.stem, bias=False)(images[..., None])
        x = nn.relu(batch_norm(train, SLOW)(x))
        for channels in self.features:
            x = MaxPool()(x)
            for _ in range(self.blocks):
                x = Residual(channels, self.squeeze)(x, train)
        x = AdaptiveAveragePool(1)(x).reshape(x.shape[0], -1)
        if train:
            x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return {head: dense(n, name=head)(x) for head, n in self.heads.items()}
