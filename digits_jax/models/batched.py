"""Convolution, 2x2 pooling and sums for members that share a program, fast on GPU and TPU.

`layers.formulation` selects them. `vmap` over kernels makes a grouped convolution, which cuDNN
does slowly: a step of 100 members of compact:p16966 takes 17.4 ms on an H100, with matrix products
of patches 6.4. Here all that members multiply is a `dot_general`, to which `vmap` adds a batch
dimension, or elementwise. Functions are written for one member; `members` is how many there are.
Results equal those of JAX's operations up to rounding. Each is a `jax.custom_vjp`: it has a
gradient, but no forward-mode derivative (see `layers.portable`).

These networks are limited by memory traffic, an H100's 3 TB/s, so what counts is how often an array
of the size of an activation is read or written.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from digits_jax.models.cpu import Pads, plain_pads
from digits_jax.types import Array

_PRODUCTS = 512  # at a time, some for each of a large GPU's 132 multiprocessors
_EXAMPLES = 2**14  # of all members whose patches are in memory at once where nothing is trained
_ALIGNED = 16  # bytes: the tensor cores' kernels read rows that begin at multiples of it


def convolution(
    members: int,
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str,
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` of [B, H, W, C], as `nn.Conv` calls it.

    Convolutions with strides, dilation, or groups of several channels are left to XLA.
    """
    dilation = (*lhs_dilation, *rhs_dilation)
    pads = plain_pads(x, kernel, window_strides, padding, dilation, feature_group_count)
    if pads is None:
        return jax.lax.conv_general_dilated(
            jnp.asarray(x),
            jnp.asarray(kernel),
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            precision=precision,
            **options,
        )
    if feature_group_count > 1:
        return _depthwise(pads, x, kernel)
    if x.shape[-1] == 1:
        return _one_channel(members, pads, precision, x, kernel)
    return _products(members, pads, precision, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _products(members: int, pads: Pads, precision: Any, x: Array, kernel: Array) -> Array:
    """Patches x kernel.

    Outside of training in parts of the batch, so that evaluation, with its larger batches, needs no
    more memory than training.
    """

    def convolve(x: Array) -> Array:
        return _product(_patches(x, kernel.shape, pads), kernel, precision)

    most = max(_EXAMPLES // members, 1)
    size = next(n for n in range(min(most, len(x)), 0, -1) if len(x) % n == 0)
    if size == len(x) or kernel.shape[:2] == (1, 1):
        return convolve(x)
    y = jax.lax.map(convolve, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def _products_forward(
    members: int, pads: Pads, precision: Any, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Keeps the patches: made again for the kernel's gradient, a step takes 1.14 times as long."""
    patches = _patches(x, kernel.shape, pads)
    return _product(patches, kernel, precision), (patches, kernel)


def _products_backward(
    members: int, pads: Pads, precision: Any, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    patches, kernel = saved
    groups = _groups(members, len(dy))
    patches = patches.reshape(groups, -1, patches.shape[-1])
    gradient = _kernel_gradient(patches, 1, dy, precision)
    gradient = gradient[: math.prod(kernel.shape[:3])].reshape(kernel.shape)
    return _input_gradient(pads, precision, kernel, dy), gradient.astype(kernel.dtype)


_products.defvjp(_products_forward, _products_backward)


def _patches(x: Array, kernel: tuple[int, ...], pads: Pads) -> Array:
    """The inputs of every output, [B, H', W', K], K at least h w C; [B, H, W, C] for a 1x1 kernel.

    Zeros fill K up to whole `_ALIGNED` bytes, in the pass that writes the patches; XLA would do it
    in a pass of its own in bfloat16, and cuBLAS choose slower kernels in float32.
    """
    if kernel[:2] == (1, 1) and not any(map(any, pads)):
        return x
    taps = [tap for *_, tap in _taps(x, kernel, pads)]
    filled = math.prod(kernel[:3])
    if missing := -filled % (_ALIGNED // x.dtype.itemsize):
        taps.append(jnp.zeros((*taps[0].shape[:3], missing), x.dtype))
    return jnp.concatenate(taps, axis=-1)


def _taps(
    x: Array, kernel: tuple[int, ...], pads: Pads, dtype: DTypeLike | None = None
) -> Iterator[tuple[int, int, Array]]:
    """Yields (row, column, the input at that place of the kernel, [B, H', W', C])."""
    rows, columns = kernel[:2]
    x = jnp.pad(x.astype(dtype or x.dtype), ((0, 0), *pads, (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    for i in range(rows):
        for j in range(columns):
            yield i, j, x[:, i : i + height, j : j + width]


def _product(patches: Array, kernel: Array, precision: Any) -> Array:
    """[B, H', W', K] and [h, w, C, O] -> [B, H', W', O]."""
    weights = kernel.reshape(-1, kernel.shape[-1])
    weights = jnp.pad(weights, ((0, patches.shape[-1] - len(weights)), (0, 0)))
    dimensions = (((patches.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(patches, weights, dimensions, precision=precision)


def _groups(members: int, batch: int) -> int:
    """Into how many parts the kernel's gradient divides the batch.

    The product of a member is a small matrix, summed over all pixels of the batch: one tile of one
    multiprocessor. 100 members alone would leave a part of the GPU idle.
    """
    groups = 1
    while members * groups < _PRODUCTS and batch % (2 * groups) == 0:
        groups *= 2
    return groups


def _kernel_gradient(patches: Array, pixels: int, dy: Array, precision: Any) -> Array:
    """[K, O], summed in float32, of [G, ...] patches whose axis `pixels` is those of [B, H, W, O].

    G divides B; the sums of its parts are added at the end.
    """
    dy = dy.reshape(len(patches), -1, dy.shape[-1])
    dimensions = (((pixels,), (1,)), ((0,), (0,)))
    parts = jax.lax.dot_general(
        patches, dy, dimensions, precision=precision, preferred_element_type=_whole(dy.dtype)
    )
    return parts.sum(0)


def _input_gradient(pads: Pads, precision: Any, kernel: Array, dy: Array) -> Array:
    """One product, then shifted sums (col2im): [B, H', W', O] -> [B, H, W, C].

    Where C <= O, as nearly everywhere, it moves fewer bytes than patches of `dy`, which have O
    channels for each tap, and makes the operations of the convolution, none on padding. The sums
    are one pass, in float32.
    """
    rows, columns, channels, features = kernel.shape
    weights = kernel.reshape(-1, features)
    parts = jax.lax.dot_general(dy, weights, (((3,), (1,)), ((), ())), precision=precision)
    if (rows, columns) == (1, 1) and not any(map(any, pads)):
        return parts
    full = _whole(dy.dtype)
    total: list[Array] = []
    (top, bottom), (left, right) = pads
    for n in range(rows * columns):
        i, j = divmod(n, columns)
        part = parts[..., n * channels : (n + 1) * channels].astype(full)
        # A pad by a negative number crops.
        height, width = (i - top, rows - 1 - i - bottom), (j - left, columns - 1 - j - right)
        edges = ((0, 0, 0), (*height, 0), (*width, 0), (0, 0, 0))
        total.append(jax.lax.pad(part, jnp.zeros((), full), edges))
    return functools.reduce(jnp.add, total).astype(dy.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _one_channel(members: int, pads: Pads, precision: Any, x: Array, kernel: Array) -> Array:
    """A sum of scaled images, in float32 and in one pass, which reads the image and writes `y`.

    A product would first write 9 numbers a pixel for a 3x3 kernel. Without the barrier, XLA may
    fuse the sum into each reader of `y` (statistics, pool, gradients) and compute it anew there.
    """
    full = _whole(x.dtype)
    taps = [
        tap * kernel[i, j, 0].astype(full).reshape(1, 1, 1, -1)
        for i, j, tap in _taps(x, kernel.shape, pads, full)
    ]
    return jax.lax.optimization_barrier(functools.reduce(jnp.add, taps).astype(x.dtype))


def _one_channel_backward(
    members: int, pads: Pads, precision: Any, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The taps are stacked before the pixels, [G, h w, pixels], so that they are written in rows.

    They are made here, for the kernel's gradient alone; the images are small.
    """
    x, kernel = saved
    groups = _groups(members, len(dy))
    taps = [tap.reshape(groups, -1) for *_, tap in _taps(x, kernel.shape, pads)]
    gradient = _kernel_gradient(jnp.stack(taps, axis=1), 2, dy, precision)
    gradient = gradient.reshape(kernel.shape).astype(kernel.dtype)
    return _input_gradient(pads, precision, kernel, dy), gradient


_one_channel.defvjp(
    lambda members, pads, precision, x, kernel: (
        _one_channel(members, pads, precision, x, kernel),
        (x, kernel),
    ),
    _one_channel_backward,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _depthwise(pads: Pads, x: Array, kernel: Array) -> Array:
    """[B, H, W, C] and [h, w, 1, C], as a sum of shifted images, in float32 and in one pass."""
    full = _whole(x.dtype)
    taps = [
        tap * kernel[i, j].astype(full)[None, None]
        for i, j, tap in _taps(x, kernel.shape, pads, full)
    ]
    return functools.reduce(jnp.add, taps).astype(x.dtype)


def _depthwise_backward(pads: Pads, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    full = _whole(x.dtype)
    size = kernel.shape[:2]
    back = tuple((k - 1 - a, k - 1 - b) for k, (a, b) in zip(size, pads, strict=True))
    dx = _depthwise(back, dy, kernel[::-1, ::-1])
    sums = [channel_sum(tap * dy.astype(full)) for *_, tap in _taps(x, kernel.shape, pads, full)]
    return dx, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(
    lambda pads, x, kernel: (_depthwise(pads, x, kernel), (x, kernel)), _depthwise_backward
)


def max_pool(x: Array) -> Array:
    """2x2 maximum, stride 2: [B, H, W, C] to [B, H // 2, W // 2, C]; an odd edge is dropped."""
    return _max_pool(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
    """2x2 maximum with the gradient of `jnp.maximum`, which two equal pixels share.

    The forward pass also writes a byte for each window: what each of its four pixels gets of the
    gradient. The backward pass then reads no activations, and writes each pixel once.
    """
    return _largest_and_shares(x)[0]


def _largest_and_shares(x: Array) -> tuple[Array, Array]:
    """-> ([B, H / 2, W / 2, C] maxima, uint8 of two bits a pixel: quarters of the gradient, or 3
    for all four).
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    a, b, c, d = (x[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    above, below = jnp.maximum(a, b), jnp.maximum(c, d)

    def share(one: Array, other: Array) -> Array:
        """In halves."""
        return (one > other).astype(jnp.uint8) + (one >= other).astype(jnp.uint8)

    rows = share(above, below), share(above, below), share(below, above), share(below, above)
    pixels = share(a, b), share(b, a), share(c, d), share(d, c)
    quarters = (jnp.minimum(row * pixel, 3) for row, pixel in zip(rows, pixels, strict=True))
    code = functools.reduce(jnp.bitwise_or, (q << 2 * i for i, q in enumerate(quarters)))
    return jnp.maximum(above, below), code


def _max_pool_backward(code: Array, dy: Array) -> tuple[Array]:
    batch, height, width, channels = dy.shape
    shift = jnp.arange(0, 8, 2, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    quarters = (code[:, :, None, :, None] >> shift) & 3
    share = (quarters + (quarters == 3)).astype(dy.dtype) / 4
    dx = dy[:, :, None, :, None] * share
    return (dx.reshape(batch, 2 * height, 2 * width, channels),)


_max_pool.defvjp(_largest_and_shares, _max_pool_backward)


def channel_sum(x: Array) -> Array:
    """The sums over all axes but the last, [..., C] -> [C].

    First over all axes but the last two, whose rows of W x C numbers are read whole. A reduction to
    C numbers would use C of a warp's 32 threads. The barrier keeps XLA from making it one again.
    """
    if x.ndim > 2:
        x = jax.lax.optimization_barrier(x.sum(tuple(range(x.ndim - 2))))
    return x.sum(0)


def channel_mean(x: Array) -> Array:
    """The means over all axes but the last, [..., C] -> [C]."""
    return channel_sum(x) / math.prod(x.shape[:-1])


@jax.custom_vjp
def affine(x: Array, scale: Array | None, bias: Array) -> Array:
    """x * scale + bias, by channel; no scale: None. [..., C], [C], [C] -> [..., C] of x's dtype.

    The gradients of scale and bias are `channel_sum`s, in float32.
    """
    full = _whole(x.dtype)
    y = x.astype(full) if scale is None else x.astype(full) * _along(x, scale)
    return (y + _along(x, bias)).astype(x.dtype)


def _affine_backward(
    saved: tuple[Array | None, Array | None, Array], dy: Array
) -> tuple[Array, Array | None, Array]:
    x, scale, bias = saved
    full = dy.astype(_whole(dy.dtype))
    to_bias = channel_sum(full).astype(bias.dtype)
    if x is None or scale is None:
        return dy, None, to_bias
    to_scale = channel_sum(full * x.astype(full.dtype)).astype(scale.dtype)
    return (full * _along(x, scale)).astype(x.dtype), to_scale, to_bias


affine.defvjp(
    lambda x, scale, bias: (
        affine(x, scale, bias),
        (None if scale is None else x, scale, bias),
    ),
    _affine_backward,
)


def _along(x: Array, vector: Array) -> Array:
    """[C] in the rank of `x` and the dtype that it is computed in."""
    return vector.astype(_whole(x.dtype)).reshape(*(1,) * (x.ndim - 1), -1)


def _whole(dtype: DTypeLike) -> Any:
    """The dtype to compute and to accumulate in: float32 for bfloat16."""
    return jnp.promote_types(dtype, jnp.float32)
