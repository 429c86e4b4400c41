"""Fills in the automatic values of a config, from the data, the devices and a resumed run."""

from pathlib import Path

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from digits_jax import settings
from digits_jax.core.population import slice_size
from digits_jax.data import dataset
from digits_jax.devices import backend, hosts
from digits_jax.devices.mesh import Layout
from digits_jax.training.engines import ENGINES
from digits_jax.training.run import build

_FULL = 0.9  # of a device's memory


def resolve(config: ConfigDict, workdir: Path | None = None) -> FrozenConfigDict:
    """A frozen copy of a checked `config` with all automatic values filled in.

    'auto' sources and `population.slice=0` are taken from the run that is resumed in `workdir`,
    else from `dataset.find` and from `slice_size`, limited by the device's memory. With
    `data.folds` a population of one becomes one member per fold, with `prune.run` one per fraction.
    Raises UserError if the digits are not available.
    """
    config = config.copy_and_resolve_references()
    if workdir:
        hosts.agree_on(workdir)  # what follows depends on it
    recorded = settings.read(workdir) if workdir and config.resume else None
    if recorded:
        for field in ("source", "test_source"):
            if config.data[field] == "auto":
                config.data[field] = recorded["data"].get(field) or "auto"
        config.population.slice = config.population.slice or recorded["population"]["slice"]
    config.data, _ = dataset.find(config.data)
    if config.prune.run:
        config.prune.fractions = settings.fractions_of(config)
    config.population.size = settings.size_of(config)
    if not config.population.slice:
        config.population.slice = _slice(config)
    return FrozenConfigDict(config)


def _slice(config: ConfigDict) -> int:
    """How many members to train at once: as many as fit into the memory of the device."""
    size = config.population.size
    if not ENGINES[config.engine].JITTABLE:
        return 1
    layout = Layout(config.mesh.data, config.batch_size)
    width = slice_size(size, jax.default_backend(), layout.members, layout.data > 1)
    room = hosts.least(backend.memory() or 0)
    while room and width > 1:
        config.population.slice = width
        if build(FrozenConfigDict(config), shapes=True).bytes_needed() <= _FULL * room:
            break
        width = -(-width // 2)
        width -= width % layout.members if width > layout.members else 0
    return width
