"""One small network for a digit, shared by both halves of a two-digit image.

It needs no hundred separate classes: log p(left, right) = log p(left) + log p(right), as the sides
are drawn independently.
"""

import math

import jax
from flax import linen as nn

from digits_jax.errors import UserError
from digits_jax.models.compact import Compact
from digits_jax.models.layers import float_dtype
from digits_jax.models.resnet import ResNet
from digits_jax.types import Array


class Tower(ResNet):
    """A `ResNet` of C classes, ten of digits, shared by the two square halves of an image.

    heads: one head of C x C classes, C x left + right; the other fields are those of `ResNet`.
    """

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, 2 H] float; dropout_rate: [] -> {head: [B, C * C]} log-probabilities."""
        return _both_digits(self, ResNet, images, train, dropout_rate)


class CompactTower(Compact):
    """A `Compact` of C classes, ten of digits, shared by the two square halves of an image.

    heads: one head of C x C classes, C x left + right; the other fields are those of `Compact`.
    """

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, 2 H] float; dropout_rate: [] -> {head: [B, C * C]} log-probabilities."""
        return _both_digits(self, Compact, images, train, dropout_rate)


def _both_digits(
    tower: Tower | CompactTower,
    network: type[ResNet | Compact],
    images: Array,
    train: bool,
    dropout_rate: Array | float,
) -> dict[str, Array]:
    """The log-probabilities of a `network` with the fields of `tower`."""
    batch, height, width = images.shape
    classes = math.isqrt(next(iter(tower.heads.values())))
    if width != 2 * height or list(tower.heads.values()) != [classes**2]:
        raise UserError(
            "a tower reads two square digits side by side into one head of pairs, such as 100 "
            f"classes; here are {height}x{width} and {dict(tower.heads)}"
        )
    flax_fields = ("heads", "parent", "name")
    fields = {k: getattr(tower, k) for k in tower.__dataclass_fields__ if k not in flax_fields}
    digit = network({"digit": classes}, **fields, name="tower")
    images = images.reshape(batch, height, 2, height).swapaxes(1, 2).reshape(-1, height, height)
    logits = digit(images, train=train, dropout_rate=dropout_rate)["digit"]
    log_p = jax.nn.log_softmax(logits.astype(float_dtype()))
    log_p = log_p.reshape(batch, 2, classes)
    left, right = (jax.lax.index_in_dim(log_p, i, 1, keepdims=False) for i in (0, 1))
    pairs = (left[:, :, None] + right[:, None, :]).reshape(batch, classes**2)
    return dict.fromkeys(tower.heads, pairs)
