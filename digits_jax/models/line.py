"""A network that runs along a line of digits, and counts and reads them at once."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.lax import slice_in_dim

from digits_jax.errors import UserError
from digits_jax.models.layers import SLOW, MaxPool, batch_norm, conv, dense, dropout, float_dtype
from digits_jax.models.resnet import Residual
from digits_jax.types import Array

_LEAST = 1e-6  # of a probability, before its logarithm


class Line(nn.Module):
    """Stages of residual blocks, then one answer for every column of the last stage.

    A column says a symbol or nothing; repeated symbols count once unless nothing is said between
    them (connectionist temporal classification, Graves et al. 2006). `emitted` sums over all ways
    in which the columns can say a text, which gives the probability of its first symbol, its second
    and so on: a head each.

    heads: the classes of each place, first to last. All but the first have one class more, the
    last: no symbol. stem, features, blocks: as in `ResNet`; mix: channels of the columns.
    """

    heads: Mapping[str, int]
    stem: int = 16
    features: tuple[int, ...] = (32, 64)
    blocks: int = 1
    mix: int = 64

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} log-probabilities."""
        first, *others = self.heads.values()
        if any(n != first + 1 for n in others):
            raise UserError(
                f"the heads of a line have C, C + 1, C + 1, ... classes, not {self.heads}"
            )
        x: Array = conv(self.stem, bias=False)(images[..., None])
        x = nn.relu(batch_norm(train, SLOW)(x))
        for channels in self.features:
            x = MaxPool()(x)
            for _ in range(self.blocks):
                x = Residual(channels, 0)(x, train)
        batch, height, width, channels = x.shape
        # Whole columns and their neighbours, as a matrix product.
        x = x.transpose(0, 2, 1, 3).reshape(batch, 1, width, height * channels)
        x = conv(self.mix, 1, bias=False)(x)
        x = nn.relu(batch_norm(train, SLOW)(x))
        x = nn.relu(batch_norm(train, SLOW)(conv(self.mix, (1, 5), bias=False)(x)))
        x = x.reshape(batch, width, self.mix)
        if train:
            x = dropout(x, dropout_rate, self.make_rng("dropout"))
        quiet = np.eye(1, first + 1, dtype=x.dtype) * np.asarray(math.log(4 * first), x.dtype)
        x = dense(first + 1, name="symbols")(x) + quiet[None]
        says = jax.nn.softmax(x.astype(float_dtype()))
        places = emitted(says, len(self.heads))
        nothing = jnp.maximum(1 - places.sum(axis=2, keepdims=True), 0)
        p = jnp.concatenate([places, nothing], axis=2)
        log_p: dict[str, Array] = {}
        for i, (head, classes) in enumerate(self.heads.items()):
            place = slice_in_dim(p, i, i + 1, axis=1).squeeze(1)
            log_p[head] = jnp.log(slice_in_dim(place, 0, classes, axis=1) + _LEAST)
        return log_p


def emitted(says: Array, places: int) -> Array:
    """says: [B, T, 1 + C], each column's probabilities of nothing and of C symbols -> [B, places,
    C], the probability that the n-th symbol of the text is c; the rest is that there is no n-th.
    """
    batch, columns, width = says.shape
    quiet = jnp.eye(places + 1, 1, dtype=says.dtype)  # [i]: i symbols so far, and nothing now
    quiet = jnp.broadcast_to(quiet, (batch, places + 1, 1))
    saying = jnp.zeros((batch, places + 1, width - 1), says.dtype)  # [i, c]: the i-th was c
    total = jnp.zeros((batch, places, width - 1), says.dtype)
    for t in range(columns):
        column = slice_in_dim(says, t, t + 1, axis=1)
        nothing = slice_in_dim(column, 0, 1, axis=2)
        symbols = slice_in_dim(column, 1, width, axis=2)
        here = saying.sum(axis=2, keepdims=True)
        begun = slice_in_dim(quiet + here - saying, 0, places, axis=1) * symbols
        total = total + begun
        quiet = (quiet + here) * nothing
        saying = saying * symbols
        saying = saying + jnp.pad(begun, ((0, 0), (1, 0), (0, 0)))
    return total
