"""Explanations of a trained network: first filters, feature maps, saliency and Grad-CAM."""

from collections.abc import Callable, Mapping
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
from digits_jax.console import console, status
from digits_jax.data import batches, dataset
from digits_jax.errors import UserError
from digits_jax.models import describe
from digits_jax.report import artifacts, figures
from digits_jax.types import Array, PyTree

Arrays = dict[str, Array]
Network = Callable[[Array, Arrays], tuple[Arrays, Arrays]]  # (images, added): `watch` of one model
_FILTERS, _CHANNELS = 64, 24  # the most that is drawn of a layer


def explain(
    config: ConfigDict, workdir: str | Path, example: int, out: str | Path | None = None
) -> None:
    """Writes filters.png, feature_maps.png and attribution.png into `workdir` or `out`.

    For the run's first member and the test image number `example`, from 0. Without convolutions
    there are no feature maps and no Grad-CAM. `config`: as in `open_run`. Raises UserError as that
    does, and for an example that does not exist.
    """
    trained = open_run(config, workdir)
    model = trained.program.model
    names = ("filters.png", "feature_maps.png", "attribution.png")
    folder = writable(workdir, out, *names)
    filters_png, maps_png, attribution_png = (folder / name for name in names)
    test = dataset.load(trained.config.data).test
    if not 0 <= example < test.size:
        raise UserError(f"--example={example}: the test split has examples 0 to {test.size - 1}")
    chosen = test._replace(rows=test.rows[example : example + 1])
    images, labels = dataset.examples(chosen, trained.recipe)
    params, model_state = trained.member(0)
    variables = {"params": params, "batch_stats": model_state}

    def network(pixels: Array, added: Arrays) -> tuple[Arrays, Arrays]:
        return watch(model, variables, batches.normalize(pixels, trained.normalizer), added)

    status("computing the maps")
    pixels = jnp.asarray(batches.to_float(images))
    logits, maps = network(pixels, {})
    rows = describe.layers(model, trained.recipe.shape)
    jumps = {row.name: row.jump for row in rows if row.jump}
    heads, texts = {}, []
    for head, (scores,) in logits.items():
        label, predicted = int(labels[head][0]), int(scores.argmax())
        attributions = _attributions(network, pixels, head, predicted, maps, jumps)
        heads[head] = (label, np.asarray(nn.softmax(scores)), attributions)
        classes = trained.classes[head]
        texts.append(f"{head} {classes[label]}, predicted {classes[predicted]}")

    status("drawing the pictures")
    source = trained.config.data.test_source or trained.config.data.source
    title = figures.noted(f"Test example {example}", artifacts.source_note(source))
    figures.attribution(images[0], heads, trained.classes, attribution_png, title)
    name, kernel = _first_kernel(params, maps, images.shape[1:])
    filters = dict([_block(name, kernel[None], _FILTERS)])
    figures.signed_maps(filters, filters_png, "The first layer's weights")
    maps_png.unlink(missing_ok=True)
    if maps:
        blocks = dict(_block(name, x, _CHANNELS) for name, x in maps.items())
        figures.signed_maps(blocks, maps_png, f"{title}: what each convolution gives")
    console.print(Text(f"example {example}: {'; '.join(texts)}; the pictures are in {folder}"))


def watch(
    model: nn.Module, variables: PyTree, images: Array, added: Arrays
) -> tuple[Arrays, Arrays]:
    """-> (logits {head: [B, C]}, outputs of the convolutions in order {name: [B', H', W', C']}).

    images: [B, H, W] float, normalised; added: {name: an array that is added to this output}. B' is
    above B in a network that cuts its images into pieces.
    """
    maps: Arrays = {}

    def record(_: nn.Module, name: str, __: Array, after: Array) -> Array:
        maps[name] = after + added.get(name, 0.0)
        return maps[name]

    with nn.intercept_methods(describe.interceptor(nn.Conv, record)):
        logits: Any = model.apply(variables, images, train=False, dropout_rate=0.0)
    return logits, maps


def gradients(network: Network, image: Array, head: str, label: int) -> tuple[Array, Arrays]:
    """Of the logit of `label`, by the image [1, H, W] and by the output of each convolution.

    Logits are taken relative to their mean: the tower returns log-probabilities, whose own
    gradients vanish at probabilities near 1.
    """

    def score(x: Array, added: Arrays) -> Array:
        logits = network(x, added)[0][head][0]
        return logits[label] - logits.mean()

    shapes = jax.eval_shape(network, image, {})[1]
    zeros = {name: jnp.zeros(maps.shape, maps.dtype) for name, maps in shapes.items()}
    return jax.jit(jax.grad(score, argnums=(0, 1)))(image, zeros)


def grad_cam(maps: Array, gradient: Array) -> Array:
    """ReLU of the sum over channels of maps [B, H, W, C], each weighted by its mean gradient.

    -> [B, H, W]. Selvaraju et al. 2017, arXiv:1610.02391.
    """
    return nn.relu((maps * gradient.mean((1, 2), keepdims=True)).sum(-1))


def over_image(cams: Array, jump: tuple[int, int], shape: tuple[int, ...]) -> Array:
    """Maps [B, h, w] scaled to an image of shape [H, W], which consists of B pieces side by side.

    A pixel of a map covers `jump` px. The margin that an unpadded convolution cuts off stays 0.
    """
    height, width = shape[0], shape[1] // len(cams)
    size = (len(cams), cams.shape[1] * jump[0], cams.shape[2] * jump[1])
    cams = jax.image.resize(cams, size, "bilinear")
    top, left = (max(n - m, 0) // 2 for n, m in zip((height, width), size[1:], strict=True))
    empty = jnp.zeros((len(cams), height, width), cams.dtype)
    return jnp.hstack(empty.at[:, top : top + size[1], left : left + size[2]].set(cams))


def _attributions(
    network: Network,
    image: Array,
    head: str,
    label: int,
    maps: Arrays,
    jumps: Mapping[str, tuple[int, int]],
) -> dict[str, np.ndarray]:
    """{title: [H, W]}: saliency (Simonyan et al. 2014, arXiv:1312.6034) and Grad-CAM.

    Grad-CAM is of the last convolution that the head depends on, before its activation; of those
    with more than one pixel, which are in `jumps`.
    """
    slope, slopes = gradients(network, image, head, label)
    found = {"saliency": np.abs(slope[0])}
    layers = [name for name in reversed(list(maps)) if name in jumps]
    if layers:
        name = next((name for name in layers if slopes[name].any()), layers[0])
        cam = grad_cam(maps[name], slopes[name])
        found[f"Grad-CAM of {name}"] = np.asarray(over_image(cam, jumps[name], image.shape[1:]))
    return found


def _first_kernel(params: PyTree, maps: Arrays, shape: tuple[int, ...]) -> tuple[str, Array]:
    """-> (name, weights [H, W, C]) of the first convolution or, in an MLP, of the first layer."""
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
