"""Random distortions of images in [0, 1], one draw per image; new pixels are background, 0."""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax.defaults import AUGMENTATIONS
from digits_jax.errors import check_choice
from digits_jax.types import Array

REGISTERED: dict[str, Callable[[Array, Array, float], Array]] = {}  # `register_augmentation`
_GRID = 4.0  # px between the control points of the elastic field


def augment(key: Array, images: Array, config: ConfigDict) -> Array:
    """images: [N, H, W] float in [0, 1] -> the same shape, each distorted independently.

    The fields of `config`: `shift_x`, `shift_y` (px; whole pixels if nothing else moves the image),
    `rotate`, `shear` (degrees) and `scale` (0.1: 0.9 to 1.1) are ranges of uniform draws; `elastic`
    is the standard deviation (px) of a smooth random displacement (Simard et al. 2003); `pen` the
    most (px) by which lines get thicker, or half of it thinner; `blur` (px) and `noise`, of the ink
    alone, the largest standard deviations; `contrast` and `brightness` are
    standard deviations, of the ink alone: the background stays 0. Registered distortions follow, by
    name. Results are clipped to [0, 1].
    """
    geometry, light = jax.random.split(key)
    if config.rotate or config.shear or config.scale or config.elastic:
        images = _warp(geometry, images, config)
    elif config.shift_x or config.shift_y:
        images = _shift(geometry, images, config.shift_x, config.shift_y)
    if config.pen:
        images = _pen(jax.random.fold_in(light, 0), images, config.pen)
    if config.blur:
        images = _blur(jax.random.fold_in(light, 1), images, config.blur)
    if config.noise:
        images = _noise(jax.random.fold_in(light, 2), images, config.noise)
    if config.contrast or config.brightness:
        gain, lift = jax.random.normal(light, (2, images.shape[0], 1, 1), images.dtype)
        ink = (images > 0).astype(images.dtype)
        images = images * (1 + config.contrast * gain) + config.brightness * lift * ink
        images = jnp.clip(images, 0, 1)
    for name, amount in sorted(config.items()):
        if name not in AUGMENTATIONS and amount:
            check_choice("config.augment (digits_jax.register_augmentation)", name, REGISTERED)
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            images = jnp.clip(REGISTERED[name](own, images, amount), 0, 1)
    return images


def _pen(key: Array, images: Array, reach: float) -> Array:
    """Thicker: part of a dilation by a cross, which adds 2 px; thinner: without faint borders."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)))
    across = jnp.maximum(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    along = jnp.maximum(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
    dilated = jnp.maximum(images, jnp.maximum(across, along))
    u = jax.random.uniform(key, (images.shape[0], 1, 1), images.dtype, -1.0, 1.0)
    thicker, cut = reach / 2 * jnp.maximum(u, 0), reach / 4 * jnp.maximum(-u, 0)
    return jnp.maximum(images + thicker * (dilated - images) - cut, 0) / (1 - cut)


def _blur(key: Array, images: Array, most: float) -> Array:
    """A Gaussian blur of uniform standard deviation up to `most`, of each image."""
    sigma = jax.random.uniform(key, (images.shape[0], 1, 1), images.dtype, 0.05, most)

    def weights(size: int) -> Array:
        index = jnp.arange(size, dtype=images.dtype)
        offset = index[None, :, None] - index[None, None, :]
        weight = jnp.exp(-((offset / sigma) ** 2) / 2)
        return weight / weight.sum(axis=2, keepdims=True)

    return weights(images.shape[1]) @ images @ weights(images.shape[2]).swapaxes(1, 2)


def _noise(key: Array, images: Array, most: float) -> Array:
    """Uneven ink: noise of a uniform standard deviation up to `most` in each image."""
    amount, pixels = jax.random.split(key)
    sigma = jax.random.uniform(amount, (images.shape[0], 1, 1), images.dtype, 0.0, most)
    noise = sigma * jax.random.normal(pixels, images.shape, images.dtype)
    return jnp.clip(images + noise * (images > 0.1), 0, 1)


def _shift(key: Array, images: Array, dx: float, dy: float) -> Array:
    """Shifts by whole pixels, uniform in [-dy, dy] and [-dx, dx]."""
    n, height, width = images.shape
    reach = jnp.asarray([[int(dy), int(dx)]])
    start = jax.random.randint(key, (n, 2), 0, 2 * reach + 1)
    padded = jnp.pad(images, ((0, 0), (int(dy),) * 2, (int(dx),) * 2))
    return jax.vmap(lambda x, s: jax.lax.dynamic_slice(x, (s[0], s[1]), (height, width)))(
        padded, start
    )


def _warp(key: Array, images: Array, config: ConfigDict) -> Array:
    """One bilinear resampling for the affine map and the elastic field together."""
    n, height, width = images.shape
    dtype = images.dtype
    key_affine, key_elastic = jax.random.split(key)
    u = jax.random.uniform(key_affine, (6, n, 1, 1), dtype, -1.0, 1.0)
    angle, shear = jnp.deg2rad(config.rotate) * u[0], jnp.deg2rad(config.shear) * u[1]
    # The source of each output pixel: the inverse map, so scales divide.
    scale_x, scale_y = 1 / (1 + config.scale * u[2]), 1 / (1 + config.scale * u[3])
    y = (jnp.arange(height, dtype=dtype) - (height - 1) / 2)[None, :, None]
    x = (jnp.arange(width, dtype=dtype) - (width - 1) / 2)[None, None, :]
    cos, sin, slope = jnp.cos(angle), jnp.sin(angle), jnp.tan(shear)
    source_x = scale_x * (cos * x + (sin + slope) * y) + config.shift_x * u[4]
    source_y = scale_y * (cos * y - sin * x) + config.shift_y * u[5]
    if config.elastic:
        rows, columns = _smooth_basis(height), _smooth_basis(width)
        knots = jax.random.normal(key_elastic, (2, n, rows.shape[1], columns.shape[1]), dtype)
        field = jnp.einsum(
            "yi,dnij,xj->dnyx", rows.astype(dtype), config.elastic * knots, columns.astype(dtype)
        )
        source_x, source_y = source_x + field[0], source_y + field[1]
    return _bilinear(images, source_y + (height - 1) / 2, source_x + (width - 1) / 2)


@functools.cache
def _smooth_basis(size: int) -> np.ndarray:
    """[size, knots]: Gaussians that turn unit noise on the knots into smooth unit noise."""
    knots = np.arange(-_GRID, size + _GRID, _GRID)
    basis = np.exp(-(((np.arange(size)[:, None] - knots[None]) / _GRID) ** 2) / 2)
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


def _bilinear(images: Array, y: Array, x: Array) -> Array:
    """Samples [N, H, W] at float positions [N, H, W]; outside is 0."""
    n, height, width = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(n, -1)
    y, x = jnp.clip(y + 1, 0, height + 0.999), jnp.clip(x + 1, 0, width + 0.999)
    top, left = jnp.floor(y), jnp.floor(x)
    fy, fx = y - top, x - left
    corner = (top * (width + 2) + left).astype(jnp.int32).reshape(n, -1)

    def pixel(offset: int) -> Array:
        return jnp.take_along_axis(padded, corner + offset, axis=1).reshape(images.shape)

    upper = pixel(0) * (1 - fx) + pixel(1) * fx
    lower = pixel(width + 2) * (1 - fx) + pixel(width + 3) * fx
    return upper * (1 - fy) + lower * fy
