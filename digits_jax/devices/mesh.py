"""The device mesh: one axis shards the members of a population, the other the batch.

Functions are written for one device. `Layout.jit` shards the member axis with `shard_map`; the
batch axis is left to XLA's partitioner (Xu et al. 2021, arXiv:2105.04663), which follows the
sharding constraint of `over_data`: means, also BatchNorm's, are over the global batch. The mesh
spans all processes.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from digits_jax.errors import UserError
from digits_jax.types import Array, PyTree, Shared

MEMBER, DATA = "member", "data"


class Layout:
    """The mesh of a run over `devices` (default: all devices of all processes).

    data: how many devices share each batch. Raises UserError unless it divides the number of
    devices and `batch_size`.
    """

    def __init__(self, data: int, batch_size: int, devices: Sequence[jax.Device] | None = None):
        count = len(devices or jax.devices())
        if count % data:
            raise UserError(f"config.mesh.data={data} does not divide the {count} devices evenly")
        if batch_size % data:
            raise UserError(
                f"config.mesh.data={data} devices cannot share a batch of {batch_size} evenly"
            )
        self.data, self.members = data, count // data
        axes = (jax.sharding.AxisType.Auto,) * 2
        self.mesh = jax.make_mesh(
            (self.members, data), (MEMBER, DATA), axis_types=axes, devices=devices
        )
        self.alone = count == 1

    def __str__(self) -> str:
        """The description in a run's first line of output."""
        name, processes = jax.default_backend(), jax.process_count()
        if self.alone:
            return name
        shape = f"{self.members} for members x {self.data} for a batch"
        return f"{self.mesh.size} {name} devices, {shape}" + (
            f", of {processes} processes" if processes > 1 else ""
        )

    def everywhere(self, tree: PyTree) -> PyTree:
        """Replicates arrays on every device; with a single device, returns `tree` unchanged."""
        return self._put(tree, jax.P())

    def over_members(self, tree: PyTree) -> PyTree:
        """Shards the leading (member) axis of every array over the mesh's member axis."""
        return self._put(tree, self._spec(tree))

    def _put(self, tree: PyTree, spec: jax.P) -> PyTree:
        if self.alone:
            return tree
        sharding = jax.NamedSharding(self.mesh, spec)

        def put(x: Any) -> Any:
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            array = np.asarray(x)  # `device_put` would compare it across processes
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

        return jax.tree.map(put, fetch(tree))

    def _spec(self, tree: PyTree) -> jax.P:
        """Shards the leading axis over MEMBER; replicates it if its size does not divide evenly."""
        size = len(jax.tree.leaves(tree)[0])
        return jax.P() if size % self.members else jax.P(MEMBER)

    def jit(self, function: Callable[..., PyTree], **how: Any) -> Callable[..., PyTree]:
        """`jax.jit` of `function`; with several devices, of its `shard_map` over the member axis.

        Arguments and results have a leading member axis, which is sharded; scalars and `Shared` are
        replicated. Keyword arguments are static; `how` is passed to `jax.jit`.
        """
        if self.alone:  # a new function object: its jit cache is freed with the run
            return jax.jit(functools.partial(function), **how)

        @functools.cache
        def compiled(spec: jax.P) -> Any:
            def divided(*arguments: PyTree, **static: Hashable) -> PyTree:
                return jax.shard_map(
                    functools.partial(function, **static),
                    mesh=self.mesh,
                    in_specs=tuple(jax.P() if _common(x) else spec for x in arguments),
                    out_specs=spec,
                    axis_names={MEMBER},
                    check_vma=False,  # no collectives over MEMBER
                )(*arguments)

            return jax.jit(divided, **how)

        def program(arguments: Sequence[PyTree]) -> Any:
            return compiled(self._spec(arguments[0]))

        def call(*arguments: PyTree, **static: Hashable) -> PyTree:
            return program(arguments)(*arguments, **static)

        call.lower = lambda *arguments, **static: program(arguments).lower(*arguments, **static)  # type: ignore[attr-defined]
        return call


def _common(argument: PyTree) -> bool:
    """Whether an argument of `Layout.jit` is replicated instead of sharded by member."""
    return isinstance(argument, Shared) or getattr(argument, "ndim", 1) == 0


def shares() -> int:
    """How many devices share each batch, in the function being traced: the size of axis DATA."""
    return jax.sharding.get_abstract_mesh().shape.get(DATA, 1)


def over_data(x: Array) -> Array:
    """Constrains the first axis of `x` [B, ...] to be sharded over DATA.

    Returns `x` unchanged if DATA has size 1 or does not divide B.
    """
    if shares() == 1 or len(x) % shares():
        return x
    return jax.lax.with_sharding_constraint(x, jax.P(DATA))


def fetch(tree: PyTree) -> PyTree:
    """Copies to the host, as NumPy arrays; a collective: every process has to call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_fetch, tree)


def _fetch(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    return np.asarray(x) if whole else multihost_utils.process_allgather(x, tiled=True)
