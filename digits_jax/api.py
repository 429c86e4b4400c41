"""What a script or a notebook imports, as `digits_jax.load` and so on.

Nothing here changes the process, prints a banner or exits: mistakes raise `UserError`.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from digits_jax import defaults, errors, files, models
from digits_jax.core.step import apply
from digits_jax.data import arrays, augment, batches, numbers, own
from digits_jax.devices import backend
from digits_jax.errors import UserError
from digits_jax.report import artifacts, stats
from digits_jax.training import predictor
from digits_jax.training import train as loop
from digits_jax.training.reader import Reader, Reading, shipped, symbols
from digits_jax.types import Array, PyTree, Weights

KEPT = "data.npz"  # in the workdir: the arrays that `train` was given


class Prediction(NamedTuple):
    """What a run answers to N images; a key for each head, such as 'digit'.

    labels: {head: [N]}, int32 digits or numbers, of a run on your own classes their names; of a run
    of numbers, such as the one that comes with the package, the likeliest digit for 'digit', int32,
    and for 'number' all that stands there, `?` where that is no digit. probabilities: {head: [N, C]
    float64}, of the ensemble, calibrated, in the order of `TrainedRun.classes[head]`; members:
    {head: [P, N, C]}, of each member, calibrated, or None.
    """

    labels: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    members: dict[str, np.ndarray] | None = None


class TrainedRun:
    """A trained network, or an ensemble of several: what `load` and `train` return.

    config: a copy of the run's config; model: its Flax module; shape: (H, W) of an image; classes:
    {head: names of the classes}; summary: the content of summary.json, {} where there is none;
    workdir: the folder, None of a bare `model.npz`.
    """

    def __init__(self, run: predictor.Predictor, workdir: Path | None):
        self._run, self.workdir = run, workdir
        self.config: ConfigDict = run.config.copy_and_resolve_references()
        self.model: nn.Module = run.program.model
        self.shape: tuple[int, int] = run.recipe.shape
        self.classes = run.classes
        self._numbers = run.config.data.dataset == "number"
        self.summary: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            if workdir:
                self.summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))

    def __repr__(self) -> str:
        heads = ", ".join(f"{head}: {len(names)} classes" for head, names in self.classes.items())
        return (
            f"<{self.config.name}, {len(self)} members, {self.shape[0]}x{self.shape[1]}, {heads}>"
        )

    def __len__(self) -> int:
        """How many members there are."""
        return self.config.population.size

    @property
    def variables(self) -> dict[str, PyTree]:
        """Flax variables, {'params': ..., 'batch_stats': ...}; every leaf is [P, ...]."""
        return _variables(self._run.weights)

    @property
    def params(self) -> PyTree:
        """The weights of all members; every leaf is [P, ...]."""
        return self._run.weights.params

    def member(self, i: int = 0) -> dict[str, PyTree]:
        """The Flax variables of member `i`, as `apply` and `model.apply` take them."""
        return _variables(self._run.member(range(len(self))[i]))

    def apply(self, variables: Mapping[str, PyTree], images: Array) -> Mapping[str, Array]:
        """Logits {head: [N, C]} of one member: a pure function, to be differentiated or vmapped.

        images: [N, H, W] uint8, or floats in [0, 1], of a run of numbers also 28x28; they are
        normalised as in training.
        """
        images = jnp.asarray(images)
        if jnp.issubdtype(images.dtype, jnp.integer):
            images = batches.to_float(images)
        if self._numbers:
            images = numbers.widened(images)
        weights = Weights(variables["params"], variables.get("batch_stats", {}))
        return apply(self.model, weights, batches.normalize(images, self._run.normalizer))[0]

    def predict(self, images: Array, members: bool = False, ink: str = "auto") -> Prediction:
        """Reads digits.

        images: [H, W], [N, H, W], [N, H, W, 1] or [N, H * W], of the run's `shape`, or of a run of
        numbers 28x28: uint8, or floats or bool from 0 (black) to 1 (white), which are rounded to
        255 steps. ink: 'bright' on dark, as MNIST's, 'dark' on bright, or 'auto', decided for all
        images together (by a run that learned from data of your own they are taken as they are).
        members: also return each member's probabilities. Raises UserError for images of another
        shape or range; warns of images that don't look like MNIST's.
        """
        pixels = self._pixels(images)
        if ink != "auto" or self.config.data.source in ("mnist", "drawn"):
            pixels, notes = arrays.as_bright(pixels, ink)
            for note in notes:
                warnings.warn(note.replace("--ink=", "ink="), stacklevel=2)
        log_p = self._log_p(pixels)
        temperature = self._run.temperature
        averaged = {
            head: stats.tempered(values, temperature[-1])
            for head, values in artifacts.averaged(log_p).items()
        }
        each = None
        if members:
            each = {
                head: np.stack(
                    [stats.tempered(p, t) for p, t in zip(values, temperature, strict=False)]
                )
                for head, values in log_p.items()
            }
        labels = {head: p.argmax(-1).astype(np.int32) for head, p in averaged.items()}
        if self._numbers:
            digit = averaged["digit"][:, : numbers.STRANGE].argmax(-1).astype(np.int32)
            labels = {"digit": digit, "number": self._texts(log_p)}
        elif self._run.own_classes:
            labels = {head: np.asarray(self.classes[head])[i] for head, i in labels.items()}
        return Prediction(labels, averaged, each)

    def _pixels(self, images: Any) -> np.ndarray:
        """[N, H, W] uint8; a run of numbers takes 28x28, too."""
        sides = np.shape(images)
        width = (0, *(sides[:-1] if sides[3:] == (1,) else sides))[-1]
        wide = not self._numbers or width in (self.shape[1], math.prod(self.shape))
        return _pixels(images, self.shape if wide else (28, 28))

    def _log_p(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return self._run.predict(numbers.widened(pixels) if self._numbers else pixels)

    def _texts(self, log_p: dict[str, np.ndarray]) -> np.ndarray:
        """[N]: the numbers that a run of numbers reads."""
        run = self._run
        said = symbols(artifacts.averaged(log_p), run.temperature[-1], run.classes, run.threshold)
        return np.array(["".join(name for name, _ in each) for each in said])

    def read(self, picture: Any, ink: str = "auto") -> Reading:
        """Reads what is written in a picture: numbers of any length, in lines.

        picture: a path, the bytes of a file, an image of Pillow, or an array [h, w] or [h, w, 3] of
        uint8 or of floats in [0, 1]; ink: 'bright' on dark, 'dark' on bright, or 'auto'. The
        reading's `text` has a line for each of the picture's; `digits` has the probability, box and
        image of each digit. Raises UserError for what is no picture, and in a run of pairs.
        """
        return Reader(self._run).picture(picture, ink)

    def evaluate(self, images: Array, labels: Any) -> dict[str, Any]:
        """How well it reads `images`: the part of a summary.json that a test split gives.

        images: as in `predict`, bright ink on dark; labels: [N] integers, [N, heads] where there
        are several heads, or {head: [N]}; of a run on your own classes as `train` takes them, of a
        run of numbers [N] numbers, as text where one begins with 0, or '?'. Keys:
        `test` (loss, heads, all_heads, and accuracy, the mean over the heads), `members`, `mean`,
        `std`, `interval`, `hardest` and, of
        several members, `ensemble`. Raises UserError where images or labels don't fit.
        """
        pixels, heads = self._pixels(images), self._run.recipe.heads
        if isinstance(labels, Mapping):
            for head in heads:
                errors.check_choice("labels", head, labels)
            labels = np.stack([np.asarray(labels[head]) for head in heads], axis=-1)
        if self._numbers and np.ndim(labels) == 1:
            places = numbers.spelled([str(label) for label in np.asarray(labels).tolist()])
            if len(places) != len(pixels):
                raise UserError(
                    f"`labels` must be {len(pixels)}, one for each image, not {len(places)}"
                )
            truth = dict(zip(heads, places.T, strict=True))
            return artifacts.test_metrics(truth, self._log_p(pixels), self.classes)
        truth = arrays.check_labels(np.asarray(labels), len(pixels), heads, self._run.own_classes)
        return artifacts.test_metrics(truth, self._log_p(pixels), self.classes)

    def export(self, folder: str | Path) -> Path:
        """Writes ONNX, StableHLO, the weights and a model card into `folder`/export.

        Needs the extra 'export'. Returns that folder. Raises UserError for a run that isn't
        finished, or that is a bare `model.npz`.
        """
        from digits_jax.export import export

        if self.workdir is None:
            raise UserError("a bare model.npz can't be exported; load the folder of its run")
        with backend.quiet():
            export.export(self.config, self.workdir, folder)
        return Path(folder) / export.FOLDER


def load(path: str | Path | None = None) -> TrainedRun:
    """A trained run: the folder of one, or a bare `model.npz`; by default the reader of digits that
    comes with the package.

    Raises UserError where there is no run, or where it can't be read.
    """
    if path is None:
        path = shipped()
    path = Path(path)
    return TrainedRun(predictor.Predictor(path), path if path.is_dir() else None)


def train(
    config: ConfigDict | str,
    workdir: str | Path | None = None,
    data: Sequence[Any] | None = None,
) -> TrainedRun:
    """Trains what `config` describes, or resumes it, and loads the result.

    config: of `get_config`, or its name; it stays as it is. workdir: the run's folder, by default
    runs/NAME. data: (images, labels) or (images, labels, test images, test labels) instead of
    `config.data.source`: [N, 28, 28] uint8 or floats in [0, 1], bright ink on dark, and whole
    numbers or names; kept as data.npz in the workdir. An interrupt is a KeyboardInterrupt; the next
    call goes on from the last epoch. Raises UserError as `launch.py` reports it.
    """
    config = get_config(config) if isinstance(config, str) else config
    if data is not None:
        workdir = Path(workdir or Path("runs") / f"{config.name}-data").expanduser()
        config = config.copy_and_resolve_references()
        config.data.source = str(_kept(data, workdir, config.resume))
    with backend.quiet():
        return load(loop.train(config, workdir))


def _kept(data: Sequence[Any], workdir: Path, resume: bool) -> Path:
    """Writes `data` of `train` into the workdir; UserError if a run began there with others."""
    path, items = workdir / KEPT, [*data] if isinstance(data, list | tuple) else []
    if len(items) == 2 and all(isinstance(part, list | tuple) and len(part) == 2 for part in items):
        items = [array for part in items for array in part]  # ((x, y), (x, y)), as Keras has it
    if len(items) not in (2, 4):
        raise UserError("data must be (images, labels) or (images, labels, images, labels)")
    x, y, *test = map(np.asarray, items)
    made = own.of_arrays(x, y, (test[0], test[1]) if test else None)
    if path.exists() and own.read(path).digest == made.digest:
        return path
    begun = (workdir / "config.json").exists()
    if path.exists() and not (begun and not resume):
        raise UserError(
            f"{path} holds other data; choose another workdir"
            + (", or config.resume=False to start its run over" if begun else "")
        )
    names, parts = np.asarray(made.classes), {"train": made.train, "test": made.test}
    named = {
        key: value
        for part, digits in parts.items()
        if digits
        for key, value in (
            (f"x_{part}", digits.images),
            (f"y_{part}", names[np.asarray(digits.labels)]),
        )
    }
    workdir.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **named)
    return path


def get_config(name: str | Path, /, **fields: Any) -> ConfigDict:
    """A config: 'NAME' or 'NAME:variant' of those that ship, or the same of a file of your own.

    fields: other values, also of nested fields: epochs=3, optimizer={"learning_rate": 1e-3}, or
    **{"optimizer.learning_rate": 1e-3}. Raises UserError for a config or a field that doesn't
    exist, and for a value of another type.
    """
    found = re.fullmatch(r"(.*?\.py|[^:]*)(?::(.*))?", os.fspath(name), re.DOTALL)
    file, variant = found.groups() if found else (os.fspath(name), "")
    path = defaults.config_file(file)
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ConfigDict = module.get_config(*([variant] if variant else []))
    for field, value in _flat(fields):
        *above, last = field.split(".")
        if field.startswith(("model.", "search.space.")):  # these take any field
            node = config
            for part in above:
                node = node[part] if part in node else node.setdefault(part, ConfigDict())
            node[last] = value
            continue
        errors.check_field("config", config, field)
        try:
            config.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{field}={value!r}: {error}") from None
    return config


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('a.b', value) of nested fields."""
    for name, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def register_model(name: str, module: type[nn.Module]) -> None:
    """Makes `config.model.name = name` build `module`.

    module: a Linen module with a field `heads`, {name: classes}, that returns {name: logits}; it is
    called with images [B, H, W], `train` and `dropout_rate`. Its other fields are the config's
    `model.*`. Raises UserError for the name of one of the package's models, and for a module
    without `heads`.
    """
    _check_name(name, models.MODELS, models.REGISTERED)
    fields = {field.name for field in dataclasses.fields(module)}
    if not issubclass(module, nn.Module) or "heads" not in fields:
        raise UserError(f"{module.__name__} must be a Linen module with a field `heads`")
    models.REGISTERED[name] = module


def register_augmentation(name: str, function: Callable[[Array, Array, float], Array]) -> None:
    """Gives configs made from now on the field `augment.NAME`, 0 by default: off.

    function: (key, images [N, H, W] in [0, 1], the field's value) -> images; pure, called within
    jit after the package's own distortions. Raises UserError for a field that the package has.
    """
    _check_name(name, defaults.AUGMENTATIONS, augment.REGISTERED)
    augment.REGISTERED[name] = function
    defaults.REGISTERED.add(name)


def _check_name(name: str, own: Any, registered: Any) -> None:
    if not name.isidentifier():
        raise UserError(f"'{name}' is no name that a config could have; use letters, digits and _")
    if name in own and name not in registered:
        raise UserError(f"'{name}' is one of the package's own; choose another name")


def _variables(weights: Weights) -> dict[str, PyTree]:
    state = {"batch_stats": weights.model_state} if weights.model_state else {}
    return {"params": weights.params, **state}


def _pixels(images: Any, shape: tuple[int, int]) -> np.ndarray:
    """[N, H, W] uint8 of what `TrainedRun.predict` takes; UserError for anything else."""
    given = np.asarray(images)
    array = given
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2 and array.shape != tuple(shape) and array.shape[1] == shape[0] * shape[1]:
        array = array.reshape(-1, *shape)  # rows of pixels
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != tuple(shape):
        raise UserError(
            f"images must be [N, {shape[0]}, {shape[1]}], not {list(given.shape)}; "
            "--mode=eval --data=FILE reads pictures of other sizes"
        )
    if not len(array):
        raise UserError("there are no images in the array")
    return arrays.as_uint8(array)
