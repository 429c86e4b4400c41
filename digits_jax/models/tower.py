"""One small network for a digit, shared by both halves of a two-digit image.

What it learns of a digit serves on either side, and a number needs no hundred separate classes:
log p(left, right) = log p(left) + log p(right), as the sides are drawn independently.
"""

from collections.abc import Callable, Mapping

import jax
from flax import linen as nn

from digits_jax.errors import UserError
from digits_jax.models.compact import Compact
from digits_jax.models.layers import float_dtype
from digits_jax.models.resnet import ResNet
from digits_jax.types import Array


class Tower(nn.Module):
    """A `ResNet` of ten classes, shared by the two square digits of an image.

    heads: one head of 100 classes, 10 x left + right; the other fields are those of `ResNet`.
    """

    heads: Mapping[str, int]
    stem: int = 16
    features: tuple[int, ...] = (32, 64)
    blocks: int = 1
    squeeze: int = 0

    @nn.compact
    def __call__(self, images: Array, *, train: bool, dropout_rate: Array) -> dict[str, Array]:
        """images: [B, H, 2 H] float; dropout_rate: [] -> {head: [B, 100]} log-probabilities."""
        fields = (self.stem, self.features, self.blocks, self.squeeze)
        tower = ResNet({"digit": 10}, *fields, name="tower")
        return _both_sides(
            lambda x: tower(x, train=train, dropout_rate=dropout_rate), images, self.heads
        )


class CompactTower(Compact):
    """A `Compact` of ten classes, shared by the two square digits of an image.

    heads: one head of 100 classes, 10 x left + right; the other fields are those of `Compact`.
    """

    @nn.compact
    def __call__(self, images: Array, *, train: bool, dropout_rate: Array) -> dict[str, Array]:
        """images: [B, H, 2 H] float; dropout_rate: [] -> {head: [B, 100]} log-probabilities."""
        own = ("heads", "parent", "name")
        fields = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in own}
        tower = Compact({"digit": 10}, **fields, name="tower")
        return _both_sides(
            lambda x: tower(x, train=train, dropout_rate=dropout_rate), images, self.heads
        )


def _both_sides(
    read: Callable[[Array], dict[str, Array]], images: Array, heads: Mapping[str, int]
) -> dict[str, Array]:
    """The number's log-probabilities by a network that reads digits; UserError for other images."""
    batch, height, width = images.shape
    if width != 2 * height or list(heads.values()) != [100]:
        raise UserError(
            "a tower reads two square digits side by side into one head of 100 classes; here are "
            f"{height}x{width} and {dict(heads)}"
        )
    digits = images.reshape(batch, height, 2, height).swapaxes(1, 2)
    logits = read(digits.reshape(-1, height, height))["digit"]
    log_p = jax.nn.log_softmax(logits.astype(float_dtype())).reshape(batch, 2, 10)
    left, right = (jax.lax.index_in_dim(log_p, i, 1, keepdims=False) for i in (0, 1))
    both = (left[:, :, None] + right[:, None, :]).reshape(batch, 100)
    return dict.fromkeys(heads, both)
