"""Predictions of a trained run, with its best weights from `model.npz` or a checkpoint.

`model.npz` holds the members of a finished run as NumPy arrays, without pickle. `config` is the
run's config as JSON; `normalizer/...`, `weights/params/...` and `weights/model_state/...` are named
by their paths in the trees; `epoch` [P] is the epoch of each member's weights; `temperature`
[P + 1] calibrates each member and, last, their averaged probabilities; `threshold` is that of
`reader.Reader`.
"""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from digits_jax import files, settings
from digits_jax.core import population
from digits_jax.core.population import members_of, slice_size, slices
from digits_jax.core.step import best_weights
from digits_jax.data import batches
from digits_jax.data.recipes import class_names, recipe_of
from digits_jax.errors import UserError
from digits_jax.training.checkpoint import FOLDER, Checkpoints, digest
from digits_jax.training.engines import ENGINES
from digits_jax.types import Normalizer, Teacher, Weights

FILE = "model.npz"
UNMEASURED = 0.5  # the threshold where no validation gave one
EPOCHS = "epochs"  # the folder for the weights that `config.keep_epochs` keeps


class Predictor:
    """A trained run with its best weights, [P, ...] each.

    workdir: its folder, with `model.npz` or, unfinished, checkpoints; or a bare `model.npz`. `read`
    takes another file. Raises UserError where there is neither, or nothing that can be read.
    """

    def __init__(self, workdir: str | Path):
        workdir = Path(workdir)
        bare = workdir.is_file()
        recorded = _config_in(workdir) if bare else settings.read(workdir)
        if recorded is None:
            raise UserError(f"{workdir} holds no run; train it first, or name another --workdir")
        self.config = config = ConfigDict(recorded)
        kept = workdir / Path(config.data.source).name  # the data in a workdir that has moved
        if config.data.sha256 and not Path(config.data.source).exists() and kept.exists():
            config.data.source = str(kept)
        self.recipe = recipe_of(config.data)
        self.classes = class_names(config.data)
        named = config.data.classes or config.data.dataset == "number"
        self.own_classes = self.classes if named else None  # None: digits alone
        self._pipeline = batches.pipeline_of(config, self.recipe, n=1)
        self.program = population.program(config, self._pipeline)
        self._predict = jax.jit(partial(population.predict, program=self.program))
        size = config.population.size
        self.temperature, self.threshold = np.ones(size + 1), UNMEASURED
        if bare or (workdir / FILE).exists():
            self.read(workdir if bare else workdir / FILE)
        else:
            self._restore(workdir)
            self._slice()

    def read(self, path: Path) -> None:
        """Takes the weights of a `model.npz`, or of an `epoch_file`; UserError if it is not one."""
        members = members_of(self.config, range(self.config.population.size))
        like = best_weights(population.shapes(members, program=self.program))
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            flat = {name: arrays.pop(name) for name in list(arrays) if name.startswith("weights/")}
            tree = traverse_util.unflatten_dict(flat, sep="/")["weights"]
            self.weights = Weights(tree["params"], tree.get("model_state", {}))
            jax.tree.map(_check_shape, like, self.weights)
            mean, scale = arrays["normalizer/mean"], arrays["normalizer/scale"]
            self.normalizer = Normalizer(jnp.asarray(mean), jnp.asarray(scale))
            self.epochs, self.temperature = arrays["epoch"].tolist(), arrays["temperature"]
            self.threshold = float(arrays.get("threshold", UNMEASURED))
        except PermissionError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except Exception as error:  # as `files.read_array` says
            raise UserError(
                f"{path} is not the model of this run ({error}); "
                "--config.resume=False trains it again"
            ) from None
        self._slice()

    def _slice(self) -> None:
        """Splits the weights into slices, at most as wide as in training."""
        size = self.config.population.size
        width = slice_size(size, jax.default_backend())
        self._ids = slices(size, min(width, self.config.population.slice or width))
        self._slices = [
            jax.tree.map(lambda x, ids=ids: jnp.asarray(x[ids.start : ids.stop]), self.weights)
            for ids in self._ids
        ]

    def _restore(self, workdir: Path) -> None:
        config = self.config
        ids = slices(config.population.size, config.population.slice)
        engine = ENGINES[config.engine]
        program = engine.program(config, self._pipeline)
        shape: Any = jax.ShapeDtypeStruct(self.recipe.shape, np.float32)
        like = {
            "slices": [engine.shapes(members_of(config, part), program=program) for part in ids],
            "normalizer": Normalizer(mean=shape, scale=shape)._asdict(),
        }
        restored = None
        if (workdir / FOLDER).is_dir():
            with Checkpoints(workdir, create=False) as checkpoints:
                restored = checkpoints.restore(like)
        if restored is None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                command = json.loads((workdir / "summary.json").read_text("utf-8"))["command"]
                raise UserError(
                    f"{workdir} holds its results without weights; to make them: {command}"
                )
            raise UserError(f"{workdir} holds no weights, neither {FILE} nor checkpoints: train it")
        _, saved, _ = restored
        self.normalizer = Normalizer(**saved["normalizer"])
        parts = [best_weights(state) for state in saved["slices"]]
        self.weights = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        self.epochs = np.concatenate([state.best.epoch for state in saved["slices"]]).tolist()

    def member(self, i: int) -> Weights:
        """(params, model_state) of member `i`."""
        return jax.tree.map(lambda x: x[i], self.weights)

    def digest(self) -> str:
        """SHA-256 of the weights and the normaliser."""
        return digest((self.weights, self.normalizer), {})

    def teacher(self) -> Teacher:
        """As a teacher for another run."""
        return Teacher(self._slices, self.normalizer)

    def predict(self, images: np.ndarray, batch: int = 0) -> dict[str, np.ndarray]:
        """images: [N, H, W] uint8, ink bright on dark -> {head: [P, N, C] log-probabilities}.

        batch: how many at once; 0 for `config.eval_batch_size`.
        """
        members, size = self.config.population.size, batch or self.config.eval_batch_size
        log_p = {
            head: np.empty((members, len(images), classes), jnp.result_type(float))
            for head, classes in self.recipe.heads.items()
        }
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0)))
            for ids, weights in zip(self._ids, self._slices, strict=True):
                answers = self._predict(weights, padded, self.normalizer)
                for head, values in answers.items():
                    found = np.asarray(values)[:, : len(part)]
                    log_p[head][ids.start : ids.stop, start : start + size] = found
        return log_p


def _config_in(path: Path) -> settings.Fields:
    """The config that a `model.npz` carries; UserError if there is none in it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return settings.complete(json.loads(str(archive["config"])))
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # a damaged file can raise anything
        raise UserError(f"{path} is not the {FILE} of a run") from None


def _check_shape(like: Any, array: np.ndarray) -> None:
    if like.shape != array.shape or array.dtype.kind != "f":
        raise ValueError(f"an array of shape {array.shape} where {like.shape} belongs")


def epoch_file(workdir: Path, epoch: int) -> Path:
    """The file with the weights of an epoch, of the same format as `model.npz`."""
    return workdir / EPOCHS / f"{epoch:04}.npz"


def write(
    path: Path,
    config: dict[str, Any],
    weights: Weights,
    normalizer: Normalizer,
    epochs: list[int],
    temperature: np.ndarray,
    threshold: float = UNMEASURED,
) -> None:
    """Writes a `model.npz` whole or not at all; the arguments are `Predictor`'s attributes."""
    tree = {"weights": weights._asdict()}
    flat = traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            config=np.asarray(json.dumps(config)),
            epoch=np.asarray(epochs),
            temperature=np.asarray(temperature),
            threshold=np.asarray(threshold),
            **{f"normalizer/{name}": np.asarray(x) for name, x in normalizer._asdict().items()},
            **flat,
        )
