"""Layers that `lax` or Flax alone would make slow or awkward.

Everything follows JAX's default float (float32, or float64 where x64 is enabled).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from digits_jax.errors import UserError, check_choice
from digits_jax.types import Array

HE = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
"""He et al. 2015, arXiv:1502.01852: keeps the variance of activations through ReLU."""


def float_dtype() -> jnp.dtype:
    """float32, or float64 where x64 is enabled."""
    return jnp.result_type(float)


def conv(features: int, *, padding: str = "SAME", bias: bool = True) -> nn.Conv:
    """A 3x3 convolution, [B, H, W, C] to [B, H', W', features]."""
    check_choice("model.padding", padding, ("SAME", "VALID"))
    return nn.Conv(
        features,
        (3, 3),
        padding=padding,
        use_bias=bias,
        kernel_init=HE,
        param_dtype=float_dtype(),
    )


def dense(features: int, name: str | None = None) -> nn.Dense:
    """A fully connected layer, [..., C] to [..., features]."""
    return nn.Dense(features, kernel_init=HE, param_dtype=float_dtype(), name=name)


def batch_norm(train: bool, momentum: float = 0.9) -> nn.BatchNorm:
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last.

    `momentum` is that of the running statistics: 0.9 here is 0.1 in PyTorch.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=momentum, epsilon=1e-5, param_dtype=float_dtype()
    )


def max_pool(x: Array) -> Array:
    """2x2 maximum, stride 2: [B, H, W, C] to [B, H // 2, W // 2, C]; an odd edge is dropped.

    The maximum of four strided slices: on CPU its gradient takes 1.8 ms where that of
    `nn.max_pool` (a select-and-scatter) takes 68, for [256, 28, 56, 16].
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    if not (h and w):
        raise UserError(
            f"the image is too small for this network: {x.shape[1:3]} before a 2x2 pool"
        )
    top, bottom = x[:, 0:h:2], x[:, 1:h:2]
    return jnp.maximum(
        jnp.maximum(top[:, :, 0:w:2], top[:, :, 1:w:2]),
        jnp.maximum(bottom[:, :, 0:w:2], bottom[:, :, 1:w:2]),
    )


def dropout(x: Array, rate: Array, key: Array) -> Array:
    """Zeroes elements of `x` with probability `rate` and scales the rest (Srivastava et al. 2014).

    `rate` [] may be traced, which `nn.Dropout` does not allow, so that members of a population can
    differ in it.
    """
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))
