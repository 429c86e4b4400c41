"""One small convolutional tower for a digit, shared by both halves of a two-digit image.

What the tower learns of a digit serves on either side, and a number needs no hundred separate
classes: log p(left, right) = log p(left) + log p(right), as the sides are drawn independently.
"""

from collections.abc import Mapping

import jax
from flax import linen as nn

from digits_jax.errors import UserError
from digits_jax.layers import MaxPool, batch_norm, conv, dense, dropout
from digits_jax.types import Array

_MOMENTUM = 0.99  # for averaged weights


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
                    x = MaxPool()(x)
                x = nn.relu(batch_norm(train, _MOMENTUM)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(batch_norm(train, _MOMENTUM)(dense(self.hidden)(x)))
        if train:
            x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return dense(10)(x)


class Tower(nn.Module):
    """A `DigitTower` over one square image, or shared by two side by side.

    heads: one head, of 10 classes for one digit or of 100, 10 x left + right, for two.
    """

    heads: Mapping[str, int]
    features: tuple[int, ...] = (24, 48, 96)
    depths: tuple[int, ...] = (1, 1, 2)
    hidden: int = 128

    @nn.compact
    def __call__(self, images: Array, *, train: bool, dropout_rate: Array) -> dict[str, Array]:
        """images: [B, H, H] or [B, H, 2 H] float; dropout_rate: [] -> {head: [B, 10 or 100]}."""
        batch, height, width = images.shape
        digits = width // height
        if width % height or list(self.heads.values()) != [10**digits] or digits > 2:
            raise UserError(
                "model.name=tower reads one square digit into a head of 10 classes, or two side by "
                f"side into one of 100; here are {height}x{width} and {dict(self.heads)}"
            )
        if len(self.features) != len(self.depths):
            raise UserError(
                f"model.features and model.depths differ in length: {self.features}, {self.depths}"
            )
        squares = images.reshape(batch, height, digits, height).swapaxes(1, 2)
        logits = DigitTower(self.features, self.depths, self.hidden, name="digit")(
            squares.reshape(-1, height, height), train=train, dropout_rate=dropout_rate
        )
        log_p = jax.nn.log_softmax(logits).reshape(batch, digits, 10)
        both = log_p[:, 0]
        if digits == 2:
            both = (both[:, :, None] + log_p[:, 1][:, None, :]).reshape(batch, 100)
        return dict.fromkeys(self.heads, both)
