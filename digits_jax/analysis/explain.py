"""What a trained network looks at: its first filters, its feature maps, saliency and Grad-CAM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax.analysis.runs import open_run, writable
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.errors import UserError
from digits_jax.models import describe
from digits_jax.report import figures, summary
from digits_jax.types import Array, PyTree

_PICTURES = ("filters.png", "feature_maps.png", "attribution.png")
_FILTERS, _CHANNELS = 64, 24  # the most that is drawn of a layer


def explain(
    config: ConfigDict, workdir: str | Path, example: int, out: str | Path | None = None
) -> None:
    """Writes filters.png, feature_maps.png and attribution.png into `workdir` or `out`.

    Of the run's first member and of number `example`, from 0, of the test split. Without
    convolutions there are no feature maps and no Grad-CAM. Of `config` the name and the folders
    count, as in `open_run`. Raises UserError as that does, and for an example that is not there.
    """
    trained = open_run(config, workdir)
    folder = writable(workdir, out, *_PICTURES)
    filters_png, maps_png, attribution_png = (folder / name for name in _PICTURES)
    test = batches.load(trained.config.data).test
    last = len(test.rows) - 1
    if not 0 <= example <= last:
        raise UserError(f"--example={example}: the test split has examples 0 to {last}")
    one = test._replace(rows=test.rows[example : example + 1])
    images, labels = batches.examples(one, trained.recipe)
    params, model_state = trained.member(0)
    variables = {"params": params, "batch_stats": model_state}

    def network(pixels: Array, added: Mapping[str, Array]) -> Any:
        inputs = batches.normalize(pixels, trained.normalizer)
        return watch(trained.population.model, variables, inputs, added)

    pixels = jnp.asarray(images, jnp.result_type(float)) / 255
    logits, maps = network(pixels, {})
    rows = describe.layers(trained.population.model, trained.recipe.shape)
    jumps = {row.name: row.jump for row in rows if row.jump}
    heads, said = {}, []
    for head, (scores,) in logits.items():
        label, predicted = int(labels[head][0]), int(scores.argmax())
        looks = _looks(network, pixels, head, predicted, maps, jumps)
        heads[head] = (label, np.asarray(nn.softmax(scores)), looks)
        names = figures.class_names(len(scores))
        said.append(f"{head} {names[label]}, predicted {names[predicted]}")

    source = trained.config.data.test_source or trained.config.data.source
    title = figures.noted(f"Test example {example}", summary.drawn(source))
    figures.attribution(images[0], heads, attribution_png, title)
    name, kernel = _first_kernel(params, maps, images.shape[1:])
    filters = dict([_block(name, kernel[None], _FILTERS)])
    figures.signed_maps(filters, filters_png, "The first layer's weights")
    maps_png.unlink(missing_ok=True)
    if maps:
        blocks = dict(_block(name, x, _CHANNELS) for name, x in maps.items())
        figures.signed_maps(blocks, maps_png, f"{title}: what each convolution gives")
    console.print(Text(f"example {example}: {'; '.join(said)}; the pictures are in {folder}"))


def watch(
    model: nn.Module, variables: PyTree, images: Array, added: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """-> (logits {head: [B, C]}, what each convolution gives, in order {name: [B', H', W', C']}).

    images: [B, H, W] float, normalised. `added` {name: like that convolution's output} is added to
    it before the network goes on. Where a network cuts its images up, B' is above B.
    """
    maps: dict[str, Array] = {}

    def look(_: nn.Module, name: str, __: Array, after: Array) -> Array:
        maps[name] = after + added.get(name, 0.0)
        return maps[name]

    apply: Any = model.apply
    with nn.intercept_methods(describe.interceptor(nn.Conv, look)):
        logits = apply(variables, images, train=False, dropout_rate=0.0)
    return logits, maps


def gradients(network: Any, image: Array, head: str, label: int) -> tuple[Array, dict[str, Array]]:
    """Of the logit of `label`: by the image [1, H, W], and by what each convolution gives.

    network: (images, added) -> (logits, maps), as `watch` has them. Logits count up to a constant,
    and these have the mean 0: the tower's are log-probabilities, which lie flat at 0 for a digit
    that it is sure of.
    """

    def score(x: Array, added: Mapping[str, Array]) -> Array:
        logits = network(x, added)[0][head][0]
        return logits[label] - logits.mean()

    shapes = jax.eval_shape(network, image, {})[1]
    zeros = {name: jnp.zeros(maps.shape, maps.dtype) for name, maps in shapes.items()}
    return jax.jit(jax.grad(score, argnums=(0, 1)))(image, zeros)


def grad_cam(maps: Array, gradient: Array) -> Array:
    """ReLU of the sum over channels of maps [B, H, W, C], weighted by the mean of `gradient`.

    -> [B, H, W]. Selvaraju et al. 2017, arXiv:1610.02391.
    """
    return nn.relu((maps * gradient.mean((1, 2), keepdims=True)).sum(-1))


def over_image(cams: Array, jump: tuple[int, int], shape: tuple[int, ...]) -> Array:
    """Lays maps [B, h, w] over an image [H, W] of B pieces side by side, where each was computed.

    A pixel of a map covers `jump` px. What an unpadded convolution has cut off stays empty.
    """
    height, width = shape[0], shape[1] // len(cams)
    size = (len(cams), cams.shape[1] * jump[0], cams.shape[2] * jump[1])
    cams = jax.image.resize(cams, size, "bilinear")
    top, left = (max(n - m, 0) // 2 for n, m in zip((height, width), size[1:], strict=True))
    empty = jnp.zeros((len(cams), height, width), cams.dtype)
    return jnp.hstack(empty.at[:, top : top + size[1], left : left + size[2]].set(cams))


def _looks(
    network: Any,
    image: Array,
    head: str,
    label: int,
    maps: Mapping[str, Array],
    jumps: Mapping[str, tuple[int, int]],
) -> dict[str, np.ndarray]:
    """{title: [H, W]}: saliency (Simonyan et al. 2014, arXiv:1312.6034), and Grad-CAM.

    Grad-CAM is of the last convolution that gives more than one pixel (has a place in `jumps`) and
    that the head depends on, before its activation.
    """
    slope, slopes = gradients(network, image, head, label)
    looks = {"saliency": np.abs(slope[0])}
    layers = [name for name in reversed(list(maps)) if name in jumps]
    if layers:
        name = next((name for name in layers if slopes[name].any()), layers[0])
        cam = grad_cam(maps[name], slopes[name])
        looks[f"Grad-CAM of {name}"] = np.asarray(over_image(cam, jumps[name], image.shape[1:]))
    return looks


def _first_kernel(
    params: PyTree, maps: Mapping[str, Array], shape: tuple[int, ...]
) -> tuple[str, Array]:
    """-> (name, weights [H, W, C]) of the first convolution or, of an MLP, of its first layer."""
    kernels = flatten_dict(params, sep="/")
    if maps:
        name = next(iter(maps))
        return name, kernels[f"{name}/kernel"][:, :, 0]
    key = next(k for k, weights in kernels.items() if weights.ndim == 2)
    return key.removesuffix("/kernel"), kernels[key].reshape(*shape, -1)


def _block(name: str, maps: Array, most: int) -> tuple[str, np.ndarray]:
    """Maps [B, 14, 14, 48] -> ("Conv_1, 14x14x48, the first 24", [24, 14, B * 14])."""
    pictures = np.concatenate(maps, axis=1).transpose(2, 0, 1)
    times = f"{len(maps)} × " if len(maps) > 1 else ""
    cut = f", the first {most}" if len(pictures) > most else ""
    return f"{name}, {times}{'x'.join(map(str, maps.shape[1:]))}{cut}", pictures[:most]
