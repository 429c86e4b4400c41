"""What a finished or half-finished run says of its test set, or of a user's own images."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from digits_jax import devices, report, settings, user_images
from digits_jax.checkpoint import Checkpoints
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.data.pairs import RECIPES
from digits_jax.errors import UserError
from digits_jax.population import Population, seeds_of, slices
from digits_jax.types import PyTree


class Trained:
    """A workdir's run, as it predicts: the chosen weights of its best checkpoint.

    Raises UserError where `workdir` holds no run, or no checkpoint that can be read.
    """

    def __init__(self, workdir: Path):
        recorded = settings.read(workdir)
        if recorded is None:
            raise UserError(f"{workdir} holds no run; train it first, or name another --workdir")
        self.config = config = ConfigDict(recorded)
        self.recipe = RECIPES[config.data.dataset]
        self.population = Population(config, self.recipe, steps_per_epoch=1)
        members = slices(config.population.size, config.population.slice)
        seeds = [seeds_of(config, ids) for ids in members]
        shape: Any = jax.ShapeDtypeStruct(self.recipe.shape, np.float32)
        saved = {
            "slices": [jax.eval_shape(self.population.init, ids) for ids in seeds],
            "normalizer": batches.Normalizer(mean=shape, scale=shape)._asdict(),
        }
        with Checkpoints(workdir) as checkpoints:
            restored = checkpoints.restore(saved)
        if restored is None:
            raise UserError(f"{workdir} holds no checkpoint; the train mode makes one every epoch")
        self.epoch, saved, _ = restored
        self.normalizer = batches.Normalizer(**saved["normalizer"])
        self._weights: list[PyTree] = [self.population.chosen(s) for s in saved["slices"]]
        best = np.concatenate([state.best.epoch for state in saved["slices"]]).tolist()
        self.epochs: list[int] = best if config.data.validation else [self.epoch] * len(best)

    def member(self, i: int) -> tuple[PyTree, PyTree]:
        """(params, model_state) of member `i`."""
        width = len(jax.tree.leaves(self._weights[0])[0])
        return jax.tree.map(lambda x: x[i % width], self._weights[i // width])

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """images: [N, H, W] uint8, ink bright on dark -> {head: [P, N, C] log-probabilities}."""
        program = jax.jit(self.population.predict)
        size = self.config.eval_batch_size
        batches_of = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0)))
            slices_of = [program(w, padded, self.normalizer) for w in self._weights]
            batches_of.append(jax.tree.map(lambda *x: np.concatenate(x), *slices_of))
        return {
            head: np.concatenate([log_p[head] for log_p in batches_of], axis=1)[:, : len(images)]
            for head in self.recipe.heads
        }


def open_run(config: Any, workdir: Path) -> Trained:
    """The run of `config` that lies in `workdir`, its data in the folders of `config`.

    Of `config` only the name and the folders count: what was trained is recorded in the workdir.
    Raises UserError as `Trained` does, and where the run is another config's.
    """
    devices.start(batches.cache_dir(config.data))
    trained = Trained(workdir)
    if trained.config.name != config.name:
        raise UserError(f"{workdir} holds a run of {trained.config.name}, not of {config.name}")
    trained.config.data.update(raw_dir=config.data.raw_dir, cache_dir=config.data.cache_dir)
    return trained


def evaluate(config: Any, workdir: Path, data: str | None, ink: str) -> None:
    """Writes predictions.csv into `workdir`, of the test set or of the user's `data`.

    With several members the predictions are those of their averaged probabilities. `config` counts
    as it does in `open_run`.
    """
    trained = open_run(config, workdir)
    names = None
    if data:
        images, labels, names = user_images.read(data, ink, trained.recipe)
    else:
        test = batches.load(trained.config.data).test
        images, labels = batches.examples(test, trained.recipe)
    log_p = trained.predict(images)
    averaged = {head: np.log(p) for head, p in report.mean_probabilities(log_p).items()}
    path = workdir / "predictions.csv"
    report.write_predictions(path, averaged, labels, names)
    if labels is not None:
        console.print(report.headline(report.test_metrics(labels, log_p)))
    epochs = ", ".join(map(str, trained.epochs))
    console.print(f"{len(images):,} images under the weights of epoch {epochs}; {path}")
