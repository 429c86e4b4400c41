"""One small convolutional tower that reads both halves of a two-digit image.

What the tower learns of a digit serves on either side, and a number needs no hundred separate
classes: log p(left, right) = log p(left) + log p(right), as the sides are drawn independently.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from digits_jax.errors import UserError
from digits_jax.layers import batch_norm, conv, dense, dropout, max_pool
from digits_jax.types import Array


class DigitTower(nn.Module):
    """[B, 28, 28] to the ten logits of one digit.

    A stage per entry of `features`: `depths` 3x3 convolutions, each with BatchNorm and ReLU; the
    last one is pooled first, since on the quarter of the pixels both cost a quarter. Then fully
    connected layers.
    """

    features: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: int

    @nn.compact
    def __call__(self, images: Array, *, train: bool, dropout_rate: Array) -> Array:
        x = images[..., None]
        for channels, depth in zip(self.features, self.depths, strict=True):
            for layer in range(depth):
                x = conv(channels, bias=False)(x)
                if layer == depth - 1:
                    x = max_pool(x)
                x = nn.relu(batch_norm(train)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(batch_norm(train)(dense(self.hidden)(x)))
        if train:
            x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return dense(10)(x)


class Tower(nn.Module):
    """A shared `DigitTower` over the left and the right half; the logits are the outer sum.

    heads: must be the one head of 100 classes, 10 x left + right.
    """

    heads: Mapping[str, int]
    features: tuple[int, ...] = (24, 48, 96)
    depths: tuple[int, ...] = (1, 1, 2)
    hidden: int = 128

    @nn.compact
    def __call__(self, images: Array, *, train: bool, dropout_rate: Array) -> dict[str, Array]:
        """images: [B, H, 2 H] float; dropout_rate: [] -> {head: [B, 100]} log-probabilities."""
        batch, height, width = images.shape
        if width != 2 * height or list(self.heads.values()) != [100]:
            raise UserError(
                "model.name=tower reads two square halves into one head of 100 classes; "
                f"this image is {height}x{width} and the heads are {dict(self.heads)}"
            )
        halves = images.reshape(batch, height, 2, height).swapaxes(1, 2)
        logits = DigitTower(self.features, self.depths, self.hidden, name="digit")(
            halves.reshape(2 * batch, height, height), train=train, dropout_rate=dropout_rate
        )
        left, right = jnp.moveaxis(jax.nn.log_softmax(logits).reshape(batch, 2, 10), 1, 0)
        return {
            head: (left[:, :, None] + right[:, None, :]).reshape(batch, -1) for head in self.heads
        }
