"""Stages of small convolutions, after VGG (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

from collections.abc import Mapping

from flax import linen as nn

from digits_jax.errors import UserError
from digits_jax.models.layers import SLOW, MaxPool, batch_norm, conv, dense, dropout
from digits_jax.types import Array


class VGG(nn.Module):
    """A stage per entry of `features`, fully connected layers, a layer per head.

    heads: classes by head; features: channels by stage; depths: 3x3 convolutions by stage, each
    with BatchNorm and ReLU; the last one of a stage is pooled before these, which makes them four
    times cheaper; hidden: units by layer, each with BatchNorm, ReLU and dropout.
    """

    heads: Mapping[str, int]
    features: tuple[int, ...] = (24, 48, 96)
    depths: tuple[int, ...] = (1, 1, 2)
    hidden: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        if len(self.features) != len(self.depths):
            raise UserError(
                f"model.features and model.depths differ in length: {self.features}, {self.depths}"
            )
        x = images[..., None]
        for channels, depth in zip(self.features, self.depths, strict=True):
            for layer in range(depth):
                x = conv(channels, bias=False)(x)
                if layer == depth - 1:
                    x = MaxPool()(x)
                x = nn.relu(batch_norm(train, SLOW)(x))
        x = x.reshape(x.shape[0], -1)
        for units in self.hidden:
            x = nn.relu(batch_norm(train, SLOW)(dense(units)(x)))
            if train:
                x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return {head: dense(n, name=head)(x) for head, n in self.heads.items()}
