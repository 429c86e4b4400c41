"""The networks, a family per file. Each takes `heads={name: classes}` and returns `{name: logits}`.

May import devices and data, and the files of `digits_jax` itself.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict
from ml_collections import ConfigDict

from digits_jax.errors import UserError, check_choice, nearest
from digits_jax.models.cnn import CNN
from digits_jax.models.compact import Compact
from digits_jax.models.lenet5 import LeNet5
from digits_jax.models.line import Line
from digits_jax.models.mlp import MLP
from digits_jax.models.resnet import ResNet
from digits_jax.models.tower import CompactTower, Tower
from digits_jax.models.vgg import VGG
from digits_jax.types import PyTree

MODELS: dict[str, type[nn.Module]] = {
    "cnn": CNN,
    "compact": Compact,
    "compact_tower": CompactTower,
    "lenet5": LeNet5,
    "line": Line,
    "mlp": MLP,
    "resnet": ResNet,
    "tower": Tower,
    "vgg": VGG,
}
REGISTERED: dict[str, type[nn.Module]] = {}  # by `digits_jax.register_model`


def build(name: str, heads: Mapping[str, int], **fields: Any) -> nn.Module:
    """The network `MODELS[name]`, or the registered one, with these heads.

    Raises UserError for an unknown name or field, and for a value of another type.
    """
    known_models = MODELS | REGISTERED
    check_choice("model.name", name, known_models)
    model = known_models[name]
    not_ours = ("heads", "parent", "name")  # given by the data, and Flax's own
    known = {f.name: f for f in dataclasses.fields(model) if f.name not in not_ours}
    for field, value in fields.items():
        if field not in known:
            raise UserError(f"model.{field}: '{name}' has no such field; {nearest(field, known)}")
        fields[field] = value = tuple(value) if isinstance(value, list) else value
        meant, fits = _TYPES.get(known[field].type, ("", lambda _: True))
        default = known[field].default
        if not fits(value) and value != default:
            raise UserError(f"model.{field} must be {meant} (default {default}), not {value!r}")
    return model(heads=FrozenDict(heads), **fields)


def from_config(config: ConfigDict, heads: Mapping[str, int]) -> nn.Module:
    """The network of `config.model`; the dropout rate is a member's (`types.Hyper`)."""
    fields = {k: v for k, v in config.model.items() if k not in ("name", "dropout")}
    return build(config.model.name, heads, **fields)


def count_parameters(params: PyTree) -> int:
    """Trainable numbers, as PyTorch counts them: BatchNorm's scale and shift in, statistics out."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# {the annotation of a field: (what an error says that it must be, whether a value is that)}; fields
# of other types, which registered models can have, take any value.
_TYPES: dict[object, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number above 0", _is_size),
    float: ("a number from 0 to 1", lambda v: isinstance(v, int | float) and 0 <= v <= 1),
    bool: ("True or False", lambda v: isinstance(v, bool)),
    str: ("a name", lambda v: isinstance(v, str)),
    tuple[int, ...]: (
        "whole numbers above 0",
        lambda v: isinstance(v, tuple) and all(_is_size(n) for n in v),
    ),
    tuple[str, ...]: (
        "names",
        lambda v: isinstance(v, tuple) and v != () and all(isinstance(n, str) for n in v),
    ),
}
