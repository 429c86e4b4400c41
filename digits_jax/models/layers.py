"""The layers that networks are made of: Flax's, set up once, and those that Flax has not.

Each is a module, so that `describe` sees it pass. Images are [B, H, W, C]; everything follows JAX's
default float (float32, or float64 where x64 is enabled). On CPU some have gradients of their own,
which are faster there; for derivatives of another kind see `portable`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from digits_jax.devices import mesh
from digits_jax.errors import UserError, check_choice
from digits_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "silu": nn.silu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
}
PADDINGS = ("SAME", "VALID")

HE = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
"""He et al. 2015, arXiv:1502.01852: keeps the variance of activations through ReLU."""
GLOROT = nn.initializers.glorot_uniform()
"""Glorot and Bengio 2010: the same for activations that are linear around 0."""


_portable = jax.make_user_context(False)  # jax.jit keeps what it traced within apart


def portable() -> AbstractContextManager[None]:
    """Within, layers are JAX's own operations alone, traced for every backend alike.

    For export, and for derivatives other than a gradient: `jax.jvp`, `jacfwd`, `hessian`,
    `linearize`. On CPU they work only within, where training is slower; outside JAX says "can't
    apply forward-mode autodiff (jvp) to a custom_vjp function". GPU and TPU always have JAX's own
    operations.
    """
    return _portable(True)


def _tuned() -> bool:
    """Whether layers may take what is faster on CPU, and has a gradient but no other derivative."""
    return jax.default_backend() == "cpu" and not _portable.value


def float_dtype() -> jnp.dtype:
    """float32, or float64 where x64 is enabled."""
    return jnp.result_type(float)


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of that name; UserError where there is none."""
    check_choice("model.activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def initializer(name: str) -> nn.initializers.Initializer:
    """How to draw the weights before that activation."""
    return GLOROT if name in ("sigmoid", "tanh") else HE


def convolution(x: Array, kernel: Array, strides: Any, padding: Any, **how: Any) -> Array:
    """`jax.lax.conv_general_dilated` as `nn.Conv` calls it; on CPU plain ones in our own ways."""
    convolve: Callable = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **how
    )
    steps = (strides, how.get("lhs_dilation") or (), how.get("rhs_dilation") or ())
    groups = how.get("feature_group_count", 1)
    ours = all(n == 1 for n in itertools.chain(*steps)) and (
        groups == 1 or groups == x.shape[-1] == kernel.shape[-1]
    )
    if not ours or not _tuned():
        return convolve(x, kernel)
    pads = tuple(jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))
    if groups > 1:
        return _cpu_depthwise(pads, x, kernel)
    if kernel.shape[:2] == (1, 1):
        return _product(x, kernel[0, 0])
    return _cpu_convolution(convolve, pads, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cpu_convolution(convolve: Callable, pads: tuple, x: Array, kernel: Array) -> Array:
    """convolve(x, kernel): of one channel to a few as a sum of shifted images.

    XLA hands a convolution of few channels to a general one, which for [64, 28, 28, 1] -> 16 takes
    2.0 ms on a core; the sum, one loop over the pixels, takes 0.2. From 32 channels on it has a
    fast one, and mnist:cnn would read 29,000 images/s instead of 36,400.
    """
    if x.shape[-1] > 1 or kernel.shape[-1] >= _MANY:
        return convolve(x, kernel)
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    taps = [
        x[:, i : i + height, j : j + width] * kernel[None, None, i, j]
        for i in range(rows)
        for j in range(columns)
    ]
    # Else XLA would compute it anew for each window of a pool that follows.
    return jax.lax.optimization_barrier(functools.reduce(jnp.add, taps))


def _forward(
    convolve: Callable, pads: tuple, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _cpu_convolution(convolve, pads, x, kernel), (x, kernel)


def _backward(
    convolve: Callable, pads: tuple, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The kernel's gradient is summed over a few examples at a time.

    XLA's own falls out of the cache: for [128, 14, 14, 24] -> 48 it takes 45 ms, in slices of 16
    examples 15. Whole steps are 1.10 (p16966) to 1.69 times (mnist100) as fast on two cores.
    """
    x, kernel = saved
    if kernel.shape[2] < _MANY and _SOME <= kernel.shape[3] < _MANY:
        dx = _fold(dy, kernel, pads, x.shape)
    else:
        (dx,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)
    # Devices that share the batch have their parts of it, which are small anyhow.
    size = max(_SLICE, -(-len(x) // _MOST_SLICES)) if mesh.shares() == 1 else len(x)
    gradients = []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        _, gradient = jax.vjp(functools.partial(convolve, x[part]), kernel)
        gradients.append(gradient(dy[part])[0])
    return dx, sum(gradients)


def _fold(dy: Array, kernel: Array, pads: tuple, shape: tuple[int, ...]) -> Array:
    """The input's gradient between few channels: one product, then sums along columns and rows.

    XLA's general convolution takes 3.1 ms for [64, 10, 10, 16] -> [64, 14, 14, 6] by 5x5, this 0.6:
    LeNet-5's step takes 0.72 to 0.84 of the time, those of the compact nets 0.88 to 1.0.
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


_cpu_convolution.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_depthwise(pads: tuple, x: Array, kernel: Array) -> Array:
    """Each channel of [B, H, W, C] by its own kernel, of [h, w, 1, C]: a sum of shifted images.

    Channels and columns are one axis, long enough for the machine's vectors. With its gradients
    XLA's own takes 6.0 ms for [64, 7, 7, 16] by 3x3 on a core, this 0.9.
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


def _wide(x: Array, pads: tuple) -> Array:
    """[B, H, W, C], padded, as [B, H', W' * C]; as an array, which XLA would else build anew for
    each use of it.
    """
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return jax.lax.optimization_barrier(x.reshape(*x.shape[:2], -1))


def _taps(
    wide: Array, kernel: tuple[int, ...], height: int, width: int
) -> Iterator[tuple[int, int, Array]]:
    """(row, column, what that tap of the kernel sees, [B, height, width * C])."""
    rows, columns, _, channels = kernel
    for i in range(rows):
        for j in range(columns):
            yield i, j, wide[:, i : i + height, j * channels : (j + width) * channels]


def _depthwise_backward(pads: tuple, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size = kernel.shape[:2]
    back = tuple((k - 1 - a, k - 1 - b) for k, (a, b) in zip(size, pads, strict=True))
    dx = _cpu_depthwise(back, dy, kernel[::-1, ::-1])
    height, width, channels = dy.shape[1:]
    whole = jnp.promote_types(dy.dtype, jnp.float32)  # bfloat16 would lose what is small
    flat = dy.reshape(len(dy), height, -1).astype(whole)
    sums = [  # row by row: of a sum over rows XLA would copy each tap first
        functools.reduce(jnp.add, [tap[:, row] * flat[:, row] for row in range(height)]).sum(0)
        for *_, tap in _taps(_wide(x.astype(whole), pads), kernel.shape, height, width)
    ]
    gradient = jnp.stack(sums).reshape(*size, width, channels).sum(2)
    return dx, gradient[:, :, None].astype(kernel.dtype)


_cpu_depthwise.defvjp(
    lambda pads, x, kernel: (_cpu_depthwise(pads, x, kernel), (x, kernel)), _depthwise_backward
)
_MANY, _SOME = 32, 12  # channels
_SLICE, _MOST_SLICES = 16, 16  # examples; more slices would only take longer to compile


class Conv(nn.Conv):
    """`nn.Conv` that says so where the image is too small for it."""

    def __call__(self, x: Array) -> Array:
        if self.padding == "VALID":
            size: Any = self.kernel_size
            check_size(x, max(size), f"a convolution of {size[0]}x{size[1]}")
        return super().__call__(x)


def conv(
    features: int,
    size: int = 3,
    *,
    padding: str = "SAME",
    bias: bool = True,
    depthwise: bool = False,
    kernel_init: nn.initializers.Initializer = HE,
) -> Conv:
    """A `size` x `size` convolution, [B, H, W, C] to [B, H', W', features].

    `depthwise`: of each channel by itself, C are `features`.
    """
    check_choice("model.padding", padding, PADDINGS)
    return Conv(
        features,
        (size, size),
        feature_group_count=features if depthwise else 1,
        padding=padding,
        use_bias=bias,
        kernel_init=kernel_init,
        param_dtype=float_dtype(),
        conv_general_dilated=convolution,
    )


def dense(
    features: int,
    name: str | None = None,
    *,
    kernel_init: nn.initializers.Initializer = HE,
) -> nn.Dense:
    """A fully connected layer, [..., C] to [..., features]."""
    return nn.Dense(
        features,
        kernel_init=kernel_init,
        param_dtype=float_dtype(),
        dot_general=lambda x, kernel, *_, **__: (_product if _tuned() else jnp.dot)(x, kernel),
        name=name,
    )


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """[..., C] @ [C, features], whose kernel's gradient comes out in the kernel's own layout.

    JAX's own comes out transposed, and under `vmap` XLA on CPU leaves it so, for the optimiser to
    read against the grain: a step of the MNIST-100 MLP would take 7.5 ms instead of 6.9.
    """
    return jnp.dot(x, kernel)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = jax.lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())))
    rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dx, jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over all axes but the last, as x * a + b with one a and one b per channel.

    It keeps x alone for the gradient, where Flax keeps x - mean, too: a step of the small ResNet
    takes 0.86 to 0.9 of the time. Without `use_scale` a is what normalises alone.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        channels, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        scale: Any = 1.0
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        running: Any = [
            self.variable("batch_stats", name, make, channels, self.param_dtype)
            for name, make in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        if self.use_running_average:
            mean, var = (variable.value for variable in running)
        else:
            full = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # sums of bfloat16 are poor
            mean = full.mean(axes)
            var = jnp.maximum((full * full).mean(axes) - mean * mean, 0)
            if not self.is_initializing():
                for variable, new in zip(running, (mean, var), strict=True):
                    variable.value = self.momentum * variable.value + (1 - self.momentum) * new
        a = scale * jax.lax.rsqrt(var + self.epsilon)
        b = bias - mean * a
        a, b = (v.astype(x.dtype).reshape(*(1,) * len(axes), -1) for v in (a, b))
        return x * a + b


SLOW = 0.99
"""A momentum of BatchNorm for networks that are evaluated with averaged weights: statistics of some
hundred steps, as those are.
"""


def batch_norm(train: bool, momentum: float = 0.9, *, scale: bool = True) -> BatchNorm:
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last.

    `momentum` is that of the running statistics: 0.9 here is 0.1 in PyTorch. `scale`: it learns
    one beside the shift.
    """
    return BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=1e-5,
        use_scale=scale,
        param_dtype=float_dtype(),
    )


class Edges(nn.Module):
    """Edges and lines of a grey image by direction: fixed filters, rectified, without parameters.

    Half of the channels are the slope of the image under a Gaussian of 1 px, in directions all
    around; the other half are its curvature across the directions of half a turn, which is large on
    bright lines. Each is a sum of six separable filters (Freeman and Adelson 1991, The Design and
    Use of Steerable Filters), as long as the positive weights sum to 1. [B, H, W, 1] to [B, H, W,
    features], with black around the image.
    """

    features: int
    size = 7

    def __call__(self, x: Array) -> Array:
        taps, mix = _steerable(self.features, self.size)
        rows = [_filter(x, tap, axis=1) for tap in taps]
        parts = [_filter(rows[i], taps[j], axis=2) for i, j in _ORDERS]
        return nn.relu(jnp.dot(jnp.concatenate(parts, axis=-1), jnp.asarray(mix, x.dtype)))


_ORDERS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))  # of the moments along rows and columns


def _steerable(features: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """-> (moments 0 to 2 of a Gaussian, [3, size]; what each feature takes of their products, [6,
    features]).
    """
    t = np.arange(size) - size // 2
    gauss = np.exp(-(t**2) / 2)
    moments = gauss / gauss.sum() * np.stack([t**0, t, t**2])
    around = 2 * np.pi * np.arange(features // 2) / max(features // 2, 1)
    across = np.pi * np.arange(features - features // 2) / (features - features // 2)
    mix = np.zeros((6, features))
    mix[1:3, : len(around)] = np.cos(around), np.sin(around)
    mix[0, len(around) :] = moments[2].sum()  # so that flat areas give 0
    c, s = np.cos(across), np.sin(across)
    mix[3:, len(around) :] = -c * c, -2 * c * s, -s * s
    filters = np.stack([np.outer(moments[i], moments[j]) for i, j in _ORDERS], axis=-1) @ mix
    return moments, mix / np.maximum(filters, 0).sum((0, 1))


def _filter(x: Array, taps: np.ndarray, axis: int) -> Array:
    """The sums of as many neighbours along `axis`, each times its tap."""
    n, reach = x.shape[axis], len(taps) // 2
    x = jnp.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)])
    parts = (jax.lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(len(taps)))
    return functools.reduce(
        jnp.add, (float(tap) * part for tap, part in zip(taps, parts, strict=True))
    )


class MaxPool(nn.Module):
    """2x2 maximum, stride 2: [B, H, W, C] to [B, H // 2, W // 2, C]; an odd edge is dropped."""

    def __call__(self, x: Array) -> Array:
        check_size(x, 2, "a 2x2 pool")
        if _portable.value:
            return _portable_max_pool(x)
        return _max_pool(x) if _tuned() else _largest_quarter(x)


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
    """`nn.max_pool`, with the gradient of the maximum of four strided slices.

    On CPU that takes 1.8 ms where `nn.max_pool`'s own (a select-and-scatter) takes 68, for [256,
    28, 56, 16]. Forward the slices are slow: phase5 would read 14,800 images/s instead of 22,000.
    """
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def _largest_quarter(x: Array) -> Array:
    """The same as the maximum of four strided slices, with derivatives of every order."""
    a, b, c, d = _quarters(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


_max_pool.defvjp(lambda x: (_max_pool(x), x), lambda x, dy: jax.vjp(_largest_quarter, x)[1](dy))


@jax.custom_jvp
def _portable_max_pool(x: Array) -> Array:
    """`nn.max_pool`, for which other runtimes have an operation, with derivatives of every order.

    Its own second ones lose half of their digits on a GPU.
    """
    return nn.max_pool(x, (2, 2), strides=(2, 2))


@_portable_max_pool.defjvp
def _portable_max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _portable_max_pool(*primals), jax.jvp(_largest_quarter, primals, tangents)[1]


class AveragePool(nn.Module):
    """2x2 mean, stride 2: [B, H, W, C] to [B, H // 2, W // 2, C]; an odd edge is dropped."""

    def __call__(self, x: Array) -> Array:
        a, b, c, d = _quarters(x)
        return (a + b + c + d) / 4


POOLINGS: dict[str, type[nn.Module]] = {"max": MaxPool, "average": AveragePool}


class AdaptiveAveragePool(nn.Module):
    """Means of `size` x `size` equal windows: [B, H, W, C] to [B, size, size, C].

    The stride is H // size and the window H - (size - 1) * stride: 7 to 3 is windows of 3 at a
    stride of 2, as in PyTorch, whose windows are unequal where a size does not divide well. size 1
    is global average pooling (Lin et al. 2014, arXiv:1312.4400).
    """

    size: int

    def __call__(self, x: Array) -> Array:
        check_size(x, self.size, f"an average over {self.size}x{self.size} windows")
        if self.size == 1:
            return x.mean(axis=(1, 2), keepdims=True)
        window, strides = adaptive_window(x.shape[1:3], self.size)
        return nn.avg_pool(x, window, strides)


def adaptive_window(shape: tuple[int, ...], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """-> (window, strides) of `AdaptiveAveragePool` over [H, W]."""
    strides = tuple(n // size for n in shape)
    return tuple(n - (size - 1) * s for n, s in zip(shape, strides, strict=True)), strides


class SqueezeExcite(nn.Module):
    """Channel attention: scales each channel by a gate that sees all of them, averaged.

    Hu et al. 2018, arXiv:1709.01507. `reduction`: channels by units of the hidden layer.
    """

    reduction: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        gate = AdaptiveAveragePool(1)(x)
        gate = nn.relu(dense(max(channels // self.reduction, 1))(gate))
        return x * nn.sigmoid(dense(channels, kernel_init=GLOROT)(gate))


def dropout(x: Array, rate: Array | float, key: Array, *, spatial: bool = False) -> Array:
    """Zeroes elements of `x` with probability `rate` and scales the rest (Srivastava et al. 2014).

    `spatial` drops whole channels of an example (Tompson et al. 2015, arXiv:1411.4280). `rate` []
    may be traced, which `nn.Dropout` does not allow, so that members of a population can differ
    in it; a plain 0 costs nothing. Chances are multiples of 1 / 65536: two to a random word.
    """
    if isinstance(rate, float) and rate == 0:
        return x
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if spatial else x.shape
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).ravel()[:size].reshape(shape)
    keep = halves.astype(jnp.uint32) >= jnp.rint(65536 * rate).astype(jnp.uint32)
    return x * jnp.where(keep, 1 / (1 - rate), 0).astype(x.dtype)


def crop(x: Array, shape: tuple[int, ...]) -> Array:
    """The middle of [B, H, W, C] that lies under an unpadded convolution's output [B, H', W', ...].

    What a shortcut around that convolution passes on.
    """
    for axis in (1, 2):
        start = (x.shape[axis] - shape[axis]) // 2
        x = jax.lax.slice_in_dim(x, start, start + shape[axis], axis=axis)
    return x


def check_size(x: Array, least: int, layer: str) -> None:
    """UserError unless [B, H, W, C] has at least `least` rows and columns."""
    if min(x.shape[1:3]) < least:
        height, width = x.shape[1:3]
        raise UserError(
            f"the image is too small for this network: {height}x{width} is left for {layer}"
        )


def _quarters(x: Array) -> tuple[Array, Array, Array, Array]:
    """The four pixels of every 2x2 window."""
    check_size(x, 2, "a 2x2 pool")
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = [jax.lax.slice_in_dim(x, i, h, 2, axis=1) for i in (0, 1)]
    a, b, c, d = (jax.lax.slice_in_dim(row, j, w, 2, axis=2) for row in rows for j in (0, 1))
    return a, b, c, d
