"""Convolution, matrix product and max pooling, rewritten to be fast in XLA on CPU.

`layers.formulation` selects them. Results equal those of JAX's operations up to rounding. Each is a
`jax.custom_vjp`: it has a gradient, but no forward-mode derivative (see `layers.portable`). Times
below are on one core, unless stated otherwise.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from digits_jax.devices import mesh
from digits_jax.types import Array

Pads = tuple[tuple[int, int], ...]
Convolve = Callable[[Array, Array], Array]
"""XLA's own convolution, (x, kernel) -> y, with all of its options bound."""

_FEW, _SOME = 32, 12  # channels: bounds of the hand-written convolution and its input gradient
_SLICE, _MOST_SLICES = 16, 16  # examples per slice; slices per batch, as more only compile longer


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str,
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` of [B, H, W, C], as `nn.Conv` calls it.

    Convolutions with strides, dilation, or groups of several channels are left to XLA.
    """
    convolve: Convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        feature_group_count=feature_group_count,
        **options,
    )
    dilation = (*lhs_dilation, *rhs_dilation)
    pads = plain_pads(x, kernel, window_strides, padding, dilation, feature_group_count)
    if pads is None:
        return convolve(x, kernel)
    if feature_group_count > 1:
        return _depthwise(pads, x, kernel)
    if kernel.shape[:2] == (1, 1):
        return product(x, kernel[0, 0])
    return _convolution(convolve, pads, x, kernel)


def plain_pads(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    groups: int,
) -> Pads | None:
    """The padding of a convolution, as numbers; None if it has strides, dilation, or groups.

    A depthwise convolution, of one feature a channel, counts as one without groups.
    """
    depthwise = groups == x.shape[-1] == kernel.shape[-1]
    plain = all(n == 1 for n in (*window_strides, *dilation))
    if not plain or not (groups == 1 or depthwise):
        return None
    sizes = x.shape[1:3], kernel.shape[:2]
    return tuple(jax.lax.padtype_to_pads(*sizes, window_strides, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(convolve: Convolve, pads: Pads, x: Array, kernel: Array) -> Array:
    """convolve(x, kernel); from 1 input to fewer than 32 output channels, a sum of shifted images.

    For few channels XLA uses a generic convolution: 2.0 ms for [64, 28, 28, 1] to 16 channels. The
    sum is fused into one loop and takes 0.2 ms. From 32 output channels on XLA's convolution is
    faster: mnist:cnn predicts 36,400 images/s with it, and 29,000 with the sum.
    """
    if x.shape[-1] > 1 or kernel.shape[-1] >= _FEW:
        return convolve(x, kernel)
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    taps = [
        x[:, i : i + height, j : j + width] * kernel[None, None, i, j]
        for i in range(rows)
        for j in range(columns)
    ]
    # Without the barrier, XLA fuses this into a following pool and recomputes it per window.
    return jax.lax.optimization_barrier(functools.reduce(jnp.add, taps))


def _convolution_backward(
    convolve: Convolve, pads: Pads, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The kernel's gradient is accumulated over slices of the batch that fit in the CPU cache.

    From [128, 14, 14, 24] to 48 channels it takes 45 ms at once, 15 ms in slices of 16 examples. On
    two cores a training step is 1.10 (compact:p16966) to 1.69 (mnist100) times as fast.
    """
    x, kernel = saved
    if kernel.shape[2] < _FEW and _SOME <= kernel.shape[3] < _FEW:
        dx = _input_gradient(dy, kernel, pads, x.shape)
    else:
        (dx,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)
    # With several devices per batch each one already has a small part.
    size = max(_SLICE, -(-len(x) // _MOST_SLICES)) if mesh.shares() == 1 else len(x)
    gradients = []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        _, gradient = jax.vjp(functools.partial(convolve, x[part]), kernel)
        gradients.append(gradient(dy[part])[0])
    return dx, sum(gradients)


_convolution.defvjp(
    lambda convolve, pads, x, kernel: (_convolution(convolve, pads, x, kernel), (x, kernel)),
    _convolution_backward,
)


def _input_gradient(dy: Array, kernel: Array, pads: Pads, shape: tuple[int, ...]) -> Array:
    """The input's gradient for few channels: one matrix product, then shifted sums (col2im).

    From [64, 10, 10, 16] to [64, 14, 14, 6] with a 5x5 kernel it takes 0.6 ms, XLA's generic
    convolution 3.1. A training step takes 0.72 to 0.84 of the time in LeNet-5, 0.88 to 1.0 in the
    compact networks.
    """
    batch, height, width, features = dy.shape
    rows, columns, channels, _ = kernel.shape
    taps = kernel.transpose(3, 1, 0, 2).reshape(features, -1)
    parts = jax.lax.optimization_barrier(jnp.dot(dy.reshape(-1, features), taps))
    parts = parts.reshape(batch, height, width, columns, rows * channels)
    wide = [
        jnp.pad(parts[:, :, :, j], ((0, 0), (0, 0), (j, columns - 1 - j), (0, 0)))
        for j in range(columns)
    ]
    parts = jax.lax.optimization_barrier(functools.reduce(jnp.add, wide))
    parts = parts.reshape(*parts.shape[:3], rows, channels)
    tall = [
        jnp.pad(parts[:, :, :, i], ((0, 0), (i, rows - 1 - i), (0, 0), (0, 0))) for i in range(rows)
    ]
    (top, _), (left, _) = pads
    return functools.reduce(jnp.add, tall)[:, top : top + shape[1], left : left + shape[2]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _depthwise(pads: Pads, x: Array, kernel: Array) -> Array:
    """Depthwise convolution of [B, H, W, C] and [h, w, 1, C], as a sum of shifted images.

    Columns and channels are merged into one axis, long enough to vectorise. Forward and backward
    take 0.9 ms for [64, 7, 7, 16] and 3x3 kernels, XLA's own 6.0.
    """
    height, width = (
        n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], pads, kernel.shape, strict=False)
    )
    wide = _wide(x, pads)
    taps = [
        tap * jnp.tile(kernel[i, j, 0], width)[None, None]
        for i, j, tap in _taps(wide, kernel.shape, height, width)
    ]
    return functools.reduce(jnp.add, taps).reshape(len(x), height, width, -1)


def _wide(x: Array, pads: Pads) -> Array:
    """Pads [B, H, W, C] and reshapes to [B, H', W' * C]; the barrier prevents recomputation."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return jax.lax.optimization_barrier(x.reshape(*x.shape[:2], -1))


def _taps(
    wide: Array, kernel: tuple[int, ...], height: int, width: int
) -> Iterator[tuple[int, int, Array]]:
    """Yields (row, column, the input shifted to that kernel position, [B, height, width * C])."""
    rows, columns, _, channels = kernel
    for i in range(rows):
        for j in range(columns):
            yield i, j, wide[:, i : i + height, j * channels : (j + width) * channels]


def _depthwise_backward(pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size = kernel.shape[:2]
    back = tuple((k - 1 - a, k - 1 - b) for k, (a, b) in zip(size, pads, strict=True))
    dx = _depthwise(back, dy, kernel[::-1, ::-1])
    height, width, channels = dy.shape[1:]
    full = jnp.promote_types(dy.dtype, jnp.float32)  # accumulate bfloat16 in float32
    flat = dy.reshape(len(dy), height, -1).astype(full)
    sums = [  # an unrolled sum over rows: XLA copies each tap first to reduce over that axis
        functools.reduce(jnp.add, [tap[:, row] * flat[:, row] for row in range(height)]).sum(0)
        for *_, tap in _taps(_wide(x.astype(full), pads), kernel.shape, height, width)
    ]
    gradient = jnp.stack(sums).reshape(*size, width, channels).sum(2)
    return dx, gradient[:, :, None].astype(kernel.dtype)


_depthwise.defvjp(
    lambda pads, x, kernel: (_depthwise(pads, x, kernel), (x, kernel)), _depthwise_backward
)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """[..., C] @ [C, features], with the kernel's gradient in the kernel's memory layout.

    JAX's own gradient is a transpose, which under `vmap` XLA on CPU keeps as a transposed layout:
    the optimiser then reads it with a stride. A step of the MNIST-100 MLP would take 7.5 ms instead
    of 6.9.
    """
    return jnp.dot(x, kernel)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = jax.lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())))
    rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dx, jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())))


product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def max_pool(plain: Callable[[Array], Array], x: Array) -> Array:
    """2x2 `nn.max_pool`, with the gradient of `plain`, the maximum of four strided slices.

    For [256, 28, 56, 16] that gradient takes 1.8 ms, the select-and-scatter of `nn.max_pool` 68.
    Forward, `nn.max_pool` is faster: compact:phase5 predicts 22,000 images/s, and 14,800 with the
    slices.
    """
    return nn.max_pool(x, (2, 2), strides=(2, 2))


max_pool.defvjp(
    lambda plain, x: (max_pool(plain, x), x), lambda plain, x, dy: jax.vjp(plain, x)[1](dy)
)
