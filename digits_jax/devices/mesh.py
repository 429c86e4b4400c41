"""Many devices as a mesh: members along one axis, the examples of a batch along the other.

Functions are written for one device. `Layout.jit` shards the members with `shard_map`; XLA shards
the batch where `over_data` constrains it, so means over a batch, BatchNorm's among them, are over
all of it (Xu et al. 2021, arXiv:2105.04663). Several processes share one mesh.
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
    """How a run lies on `devices`, by default all, of all processes: `data` share each batch.

    UserError where the devices, or a batch of `batch_size`, do not divide so.
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
        """For people."""
        name, processes = jax.default_backend(), jax.process_count()
        if self.alone:
            return name
        shape = f"{self.members} for members x {self.data} for a batch"
        return f"{self.mesh.size} {name} devices, {shape}" + (
            f", of {processes} processes" if processes > 1 else ""
        )

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays that every device holds; with a single device, `tree`."""
        return self._put(tree, jax.P())

    def over_members(self, tree: PyTree) -> PyTree:
        """Arrays with a leading axis of members, each where its member is trained."""
        return self._put(tree, self._spec(tree))

    def _put(self, tree: PyTree, spec: jax.P) -> PyTree:
        if self.alone:
            return tree
        sharding = jax.NamedSharding(self.mesh, spec)

        def put(x: Any) -> Any:
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            array = np.asarray(x)  # `device_put` would have the processes compare it
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

        return jax.tree.map(put, fetch(tree))

    def _spec(self, tree: PyTree) -> jax.P:
        """A slice that does not divide evenly over the members' axis is replicated."""
        size = len(jax.tree.leaves(tree)[0])
        return jax.P() if size % self.members else jax.P(MEMBER)

    def jit(self, function: Callable[..., PyTree], **how: Any) -> Callable[..., PyTree]:
        """`jax.jit` of a function of members, whose results have a leading axis of members.

        Its arguments are sharded by member; scalars and `Shared` are replicated. Keywords are
        static; `how` goes to `jax.jit`.
        """
        if self.alone:  # a function of its own, so that its programs go when the run goes
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
                    check_vma=False,  # members have nothing in common
                )(*arguments)

            return jax.jit(divided, **how)

        def program(arguments: Sequence[PyTree]) -> Any:
            return compiled(self._spec(arguments[0]))

        def call(*arguments: PyTree, **static: Hashable) -> PyTree:
            return program(arguments)(*arguments, **static)

        call.lower = lambda *arguments, **static: program(arguments).lower(*arguments, **static)  # type: ignore[attr-defined]
        return call


def _common(argument: PyTree) -> bool:
    return isinstance(argument, Shared) or getattr(argument, "ndim", 1) == 0


def shares() -> int:
    """How many devices share a batch, in the program that is being traced."""
    return jax.sharding.get_abstract_mesh().shape.get(DATA, 1)


def over_data(x: Array) -> Array:
    """[B, ...] with its first axis sharded over the devices that share a batch.

    Unchanged where devices share no batch, or where the examples do not divide evenly.
    """
    if shares() == 1 or len(x) % shares():
        return x
    return jax.lax.with_sharding_constraint(x, jax.P(DATA))


def fetch(tree: PyTree) -> PyTree:
    """On the host, as NumPy arrays; of several processes all have to call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_fetch, tree)


def _fetch(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    return np.asarray(x) if whole else multihost_utils.process_allgather(x, tiled=True)
