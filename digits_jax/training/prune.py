"""Magnitude pruning: a trained network's smallest weights are set to zero, and it is trained on.

Unstructured and global over all layers (Han et al. 2015, arXiv:1506.02626). Each member of the
population has another fraction pruned. In training, weights that are zero stay zero.
"""

import io
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from digits_jax import files
from digits_jax.errors import UserError
from digits_jax.report import artifacts, figures, tables
from digits_jax.settings import flatten
from digits_jax.training.predictor import Predictor
from digits_jax.types import PyTree, Weights

_FREE = ("data.raw_dir", "data.cache_dir", "data.drawn_test", "data.test", "model.dropout")


def prune(params: PyTree, fraction: float) -> PyTree:
    """One member's params, with the smallest round(fraction * weights) of its weights set to 0.

    Weights are arrays of two or more axes; biases and BatchNorm's parameters are not pruned.
    """
    params = jax.tree.map(np.asarray, params)
    sizes = np.concatenate([np.abs(w).ravel() for w in jax.tree.leaves(params) if w.ndim > 1])
    count = round(fraction * sizes.size)
    if not count:
        return params
    most = np.partition(sizes, count - 1)[count - 1]
    return jax.tree.map(lambda w: w if w.ndim < 2 else np.where(np.abs(w) <= most, 0, w), params)


def begin(config: ConfigDict, ids: range) -> Weights:
    """The first weights, [S, ...], of the members `ids`: member 0 of `prune.run`, pruned.

    Raises UserError where there is no such run, or one of another network or other data.
    """
    source = Predictor(Path(config.prune.run))
    theirs, ours = flatten(source.config), flatten(config)
    for field in ours.keys() & theirs.keys() - set(_FREE):
        if field.startswith(("model.", "data.")) and theirs[field] != ours[field]:
            raise UserError(
                f"config.prune.run={config.prune.run} has {field}={theirs[field]!r}, this run "
                f"{ours[field]!r}; a network is pruned as it was trained"
            )
    params, model_state = source.member(0)
    members = [Weights(prune(params, config.prune.fractions[i]), model_state) for i in ids]
    return jax.tree.map(lambda *x: np.stack(x), *members)


def rows(
    config: ConfigDict, params: PyTree, figures: dict[str, list[float]]
) -> list[artifacts.Row]:
    """A row for each member: its fraction, weights left, bytes compressed, and its `figures`.

    params: after training, [P, ...]; figures: {name: [P] accuracies}.
    """
    table = []
    for i, fraction in enumerate(config.prune.fractions):
        leaves = [np.asarray(w[i]) for w in jax.tree.leaves(params)]
        left = sum(np.count_nonzero(w) for w in leaves if w.ndim > 1)
        file = io.BytesIO()
        np.savez_compressed(file, *leaves, allow_pickle=False)
        row = {"pruned": fraction, "weights": int(left), "bytes": file.tell()}
        table.append(row | {name: values[i] for name, values in figures.items()})
    return table


def write(workdir: Path, config: ConfigDict, table: list[artifacts.Row]) -> str:
    """Writes pruning.md and pruning.png; returns the table."""
    figures.pruning(table, workdir / "pruning.png", artifacts.source_note(config.data.source))
    splits = [name for name in table[0] if name not in ("pruned", "weights", "bytes")]
    header = ["pruned, %", "weights left", "bytes", *(name.replace("_", " ") for name in splits)]
    cells = [
        [f"{100 * row['pruned']:g}", f"{row['weights']:,}", f"{row['bytes']:,}"]
        + [tables.percent(row[name]) for name in splits]
        for row in table
    ]
    text = tables.markdown(header, cells, [tables.RIGHT] * len(header)) + "\n"
    files.write_text(workdir / "pruning.md", _TEXT.format(run=config.prune.run) + text)
    return text


_TEXT = """# {run}, pruned

Its smallest weights set to zero, and what is left of it trained on. Bytes are of the parameters
in a compressed .npz file; accuracies in percent, before and after training on.

![Accuracy over the weights that are left](pruning.png)

"""
