"""The layers of the networks: Flax's, with this project's defaults, and some that Flax lacks.

Each is a module, so that `describe` can intercept its call. Images are [B, H, W, C]; parameters
have JAX's default float dtype (float32, or float64 where x64 is enabled). `formulation` selects
the implementation for the current backend.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from digits_jax.errors import UserError, check_choice
from digits_jax.models import batched, cpu
from digits_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "silu": nn.silu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
}
PADDINGS = ("SAME", "VALID")
_NHWC = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # kernels: HWIO

HE = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
"""He et al. 2015, arXiv:1502.01852: keeps the variance of activations through ReLU."""
GLOROT = nn.initializers.glorot_uniform()
"""Glorot and Bengio 2010: the same for activations that are linear around 0."""


_portable = jax.make_user_context(False)  # part of jit's cache key: changing it retraces


def portable() -> AbstractContextManager[None]:
    """A context in which layers are traced to standard JAX operations on every backend.

    Needed on CPU for export and for forward-mode derivatives (`jax.jvp`, `jacfwd`, `hessian`,
    `linearize`): without it JAX raises "can't apply forward-mode autodiff (jvp) to a custom_vjp
    function". Training in it is slower.
    """
    return _portable(True)


_members = jax.make_user_context(1)


def members(count: int) -> AbstractContextManager[None]:
    """A context for `vmap` over the weights of so many members: layers are traced for them all.

    Within it, on GPU and TPU, layers have a gradient, but no forward-mode derivative (see
    `portable`).
    """
    return _members(count)


class Formulation(NamedTuple):
    """The operations whose fastest implementation depends on the backend.

    convolution: with the signature of `jax.lax.conv_general_dilated`; product: [..., C] @ [C,
    features]; max_pool: 2x2, stride 2; mean: over all axes but the last; affine: x * scale + bias
    by channel, without a scale where it is None.
    """

    convolution: Callable[..., Array]
    product: Callable[[Array, Array], Array]
    max_pool: Callable[[Array], Array]
    mean: Callable[[Array], Array]
    affine: Callable[[Array, Array | None, Array], Array]


def formulation() -> Formulation:
    """Selects the implementation, at trace time: by `portable`, the backend, and `members`.

    Several members on GPU or TPU: `batched`, in which no convolution is left, as `vmap` would make
    it a grouped one. One member: XLA's convolutions, which read the image itself and no patches.
    """
    plain = Formulation(
        jax.lax.conv_general_dilated, jnp.dot, _largest_quarter, _channel_mean, _affine
    )
    if _portable.value:
        return plain._replace(max_pool=_flax_max_pool)
    if jax.default_backend() == "cpu":
        pool = functools.partial(cpu.max_pool, _largest_quarter)
        return plain._replace(convolution=cpu.convolution, product=cpu.product, max_pool=pool)
    if _members.value > 1:
        convolve = functools.partial(batched.convolution, _members.value)
        return Formulation(
            convolve, jnp.dot, batched.max_pool, batched.channel_mean, batched.affine
        )
    return plain


def _channel_mean(x: Array) -> Array:
    return x.mean(tuple(range(x.ndim - 1)))


def _affine(x: Array, scale: Array | None, bias: Array) -> Array:
    shape = (*(1,) * (x.ndim - 1), -1)
    y = x if scale is None else x * scale.astype(x.dtype).reshape(shape)
    return y + bias.astype(x.dtype).reshape(shape)


def float_dtype() -> jnp.dtype:
    """float32, or float64 where x64 is enabled."""
    return jnp.result_type(float)


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of that name; UserError where there is none."""
    check_choice("model.activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def initializer(name: str) -> nn.initializers.Initializer:
    """The initializer of the weights before that activation."""
    return GLOROT if name in ("sigmoid", "tanh") else HE


def convolution(*args: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated`, in the implementation for the current backend."""
    return formulation().convolution(*args, **options)


class Conv(nn.Conv):
    """`nn.Conv` that raises UserError where the image is too small for it.

    Its bias is added by the current formulation, too. Only the options of `conv` are supported.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rows, columns = np.broadcast_to(self.kernel_size, 2).tolist()
        if self.padding == "VALID":
            check_size(x, max(rows, columns), f"a convolution of {rows}x{columns}")
        shape = rows, columns, x.shape[-1] // self.feature_group_count, self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[-1:], self.param_dtype)
        arrays = self.promote_dtype(jnp.asarray(x), kernel, bias, dtype=self.dtype)
        options = {"feature_group_count": self.feature_group_count, "dimension_numbers": _NHWC}
        y = convolution(*arrays[:2], (1, 1), self.padding, **options)
        return y if arrays[2] is None else formulation().affine(y, None, arrays[2])


def conv(
    features: int,
    size: int | tuple[int, int] = 3,
    *,
    padding: str = "SAME",
    bias: bool = True,
    depthwise: bool = False,
    kernel_init: nn.initializers.Initializer = HE,
) -> Conv:
    """A convolution, [B, H, W, C] to [B, H', W', features].

    size: of the kernel, in px, or its (rows, columns); depthwise: one kernel per channel, for which
    C must equal `features`.
    """
    check_choice("model.padding", padding, PADDINGS)
    return Conv(
        features,
        (size, size) if isinstance(size, int) else size,
        feature_group_count=features if depthwise else 1,
        padding=padding,
        use_bias=bias,
        kernel_init=kernel_init,
        param_dtype=float_dtype(),
    )


def dense(
    features: int, name: str | None = None, *, kernel_init: nn.initializers.Initializer = HE
) -> nn.Dense:
    """A fully connected layer, [..., C] to [..., features]."""
    return nn.Dense(
        features,
        kernel_init=kernel_init,
        param_dtype=float_dtype(),
        dot_general=lambda x, kernel, *_, **__: formulation().product(x, kernel),
        name=name,
    )


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over all axes but the last, computed as x * a + b, a and b per channel.

    The backward pass stores only x, Flax's also x - mean: a training step of the small ResNet takes
    0.86 to 0.9 of the time. use_scale=False: no learnt scale.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        form, array = formulation(), (x.shape[-1:], self.param_dtype)
        scale = self.param("scale", nn.initializers.ones, *array) if self.use_scale else 1.0
        bias = self.param("bias", nn.initializers.zeros, *array)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *array)
        running_var = self.variable("batch_stats", "var", jnp.ones, *array)
        if not self.use_running_average:
            full = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # accumulate in float32
            mean = form.mean(full)
            var = jnp.maximum(form.mean(full * full) - mean * mean, 0)
            if not self.is_initializing():
                m = self.momentum
                running_mean.value = m * running_mean.value + (1 - m) * mean
                running_var.value = m * running_var.value + (1 - m) * var
        else:
            mean, var = running_mean.value, running_var.value
        a = scale * jax.lax.rsqrt(var + self.epsilon)
        return form.affine(x, a, bias - mean * a)


SLOW = 0.99
"""BatchNorm's momentum for running statistics that average over some 100 steps."""


def batch_norm(train: bool, momentum: float = 0.9, *, scale: bool = True) -> BatchNorm:
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last.

    momentum: of the running statistics; 0.9 here is 0.1 in PyTorch. scale: whether it learns a
    scale beside the bias.
    """
    return BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=1e-5,
        use_scale=scale,
        param_dtype=float_dtype(),
    )


class Edges(nn.Module):
    """Fixed oriented edge and line filters of a grey image, then ReLU; no parameters.

    Half of the channels are first derivatives of a Gaussian (sigma 1 px), in directions over 360
    degrees; the other half are negative second derivatives, over 180 degrees, which respond to
    bright lines. Each is a linear combination of six separable filters (Freeman and Adelson 1991,
    The Design and Use of Steerable Filters), scaled so that its positive weights sum to 1.
    [B, H, W, 1] to [B, H, W, features], zero-padded.
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
    """-> (moments 0 to 2 of a Gaussian, [3, size]; weights of their products, [6, features])."""
    t = np.arange(size) - size // 2
    gauss = np.exp(-(t**2) / 2)
    moments = gauss / gauss.sum() * np.stack([t**0, t, t**2])
    around = 2 * np.pi * np.arange(features // 2) / max(features // 2, 1)
    across = np.pi * np.arange(features - features // 2) / (features - features // 2)
    mix = np.zeros((6, features))
    mix[1:3, : len(around)] = np.cos(around), np.sin(around)
    mix[0, len(around) :] = moments[2].sum()  # the response to a constant image is 0
    c, s = np.cos(across), np.sin(across)
    mix[3:, len(around) :] = -c * c, -2 * c * s, -s * s
    filters = np.stack([np.outer(moments[i], moments[j]) for i, j in _ORDERS], axis=-1) @ mix
    return moments, mix / np.maximum(filters, 0).sum((0, 1))


def _filter(x: Array, taps: np.ndarray, axis: int) -> Array:
    """The correlation of `x` with `taps` along `axis`, zeros around it."""
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
        return formulation().max_pool(x)


def _largest_quarter(x: Array) -> Array:
    """2x2 max pooling as the maximum of four strided slices; differentiable to any order."""
    a, b, c, d = _quarters(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@jax.custom_jvp
def _flax_max_pool(x: Array) -> Array:
    """`nn.max_pool`, which exports as one operation, with the derivatives of `_largest_quarter`.

    The second derivatives of `nn.max_pool` lose half of their digits on a GPU.
    """
    return nn.max_pool(x, (2, 2), strides=(2, 2))


_flax_max_pool.defjvp(
    lambda primals, tangents: (
        _flax_max_pool(*primals),
        jax.jvp(_largest_quarter, primals, tangents)[1],
    )
)


class AveragePool(nn.Module):
    """2x2 mean, stride 2: [B, H, W, C] to [B, H // 2, W // 2, C]; an odd edge is dropped."""

    def __call__(self, x: Array) -> Array:
        a, b, c, d = _quarters(x)
        return (a + b + c + d) / 4


POOLINGS: dict[str, type[nn.Module]] = {"max": MaxPool, "average": AveragePool}


class AdaptiveAveragePool(nn.Module):
    """Means of `size` x `size` equal windows: [B, H, W, C] to [B, size, size, C].

    The stride is H // size and the window H - (size - 1) * stride, so 7 to 3 is a window of 3 at a
    stride of 2. PyTorch's windows differ in size where H does not divide evenly. size 1 is global
    average pooling (Lin et al. 2014, arXiv:1312.4400).
    """

    size: int

    def __call__(self, x: Array) -> Array:
        check_size(x, self.size, f"an average over {self.size}x{self.size} windows")
        if self.size == 1:
            return x.mean(axis=(1, 2), keepdims=True)
        window, strides = adaptive_window(x.shape[1:3], self.size)
        total = nn.pooling.pool(x, 0.0, jax.lax.add, window, strides, "VALID")
        return total / float(math.prod(window))


def adaptive_window(shape: tuple[int, ...], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """-> (window, strides) of `AdaptiveAveragePool` over [H, W]."""
    strides = tuple(n // size for n in shape)
    return tuple(n - (size - 1) * s for n, s in zip(shape, strides, strict=True)), strides


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018, arXiv:1709.01507).

    Scales each channel by a gate computed from the means of all channels. reduction: ratio of the
    channels to the hidden units of the gate.
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

    rate: [], may be traced, unlike `nn.Dropout`'s, so that members of a population can differ in
    it; rounded to multiples of 1 / 65536, as each random uint32 serves two elements. A Python 0.0
    draws none. spatial: drops whole channels (Tompson et al. 2015, arXiv:1411.4280).
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
    """The centre crop of [B, H, W, C] to the height and width of `shape`, [B, H', W', ...].

    For the shortcut of a residual block whose convolution has no padding.
    """
    for axis in (1, 2):
        start = (x.shape[axis] - shape[axis]) // 2
        x = jax.lax.slice_in_dim(x, start, start + shape[axis], axis=axis)
    return x


def check_size(x: Array, least: int, layer: str) -> None:
    """Raises UserError unless `x` [B, H, W, C] has at least `least` rows and columns."""
    if min(x.shape[1:3]) < least:
        height, width = x.shape[1:3]
        raise UserError(
            f"the image is too small for this network: {height}x{width} is left for {layer}"
        )


def _quarters(x: Array) -> tuple[Array, Array, Array, Array]:
    """The four pixels of every 2x2 window, as strided slices [B, H // 2, W // 2, C]."""
    check_size(x, 2, "a 2x2 pool")
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = [jax.lax.slice_in_dim(x, i, h, 2, axis=1) for i in (0, 1)]
    a, b, c, d = (jax.lax.slice_in_dim(row, j, w, 2, axis=2) for row in rows for j in (0, 1))
    return a, b, c, d
