"""The networks. Each takes `heads={name: classes}` and returns `{name: logits}`."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from digits_jax.errors import UserError, check_choice, nearest
from digits_jax.models.cnn import CNN
from digits_jax.models.mlp import MLP
from digits_jax.models.tower import Tower
from digits_jax.types import PyTree

MODELS: dict[str, type[nn.Module]] = {"cnn": CNN, "mlp": MLP, "tower": Tower}


def build(name: str, heads: Mapping[str, int], **fields: Any) -> nn.Module:
    """The network `MODELS[name]` with these heads.

    Raises UserError for a name or a field that does not exist.
    """
    check_choice("model.name", name, MODELS)
    known = [f for f in MODELS[name].__dataclass_fields__ if f not in ("heads", "parent", "name")]
    for field, value in fields.items():
        if field not in known:
            raise UserError(f"model.{field}: '{name}' has no such field; {nearest(field, known)}")
        sizes = value if isinstance(value, tuple | list) else (value,)
        if not isinstance(value, str) and not all(isinstance(n, int) and n > 0 for n in sizes):
            raise UserError(f"model.{field} must be whole numbers above 0, not {value}")
        fields[field] = tuple(value) if isinstance(value, list) else value
    return MODELS[name](heads=dict(heads), **fields)


def count_parameters(params: PyTree) -> int:
    """Trainable numbers, as PyTorch counts them: BatchNorm's scale and shift in, statistics out."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
