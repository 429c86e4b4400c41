"""Checks of a config before anything is computed, reading config.json, comparing two configs."""

import json
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from digits_jax.errors import UserError, check_choice

Fields = dict[str, Any]  # nested, as in config.json, or flat: {"data.source": value}

ENGINES = ("jax", "numpy")
FRACTIONS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # config.prune.fractions where that is ()
MOST_PEN = 2.0  # px: the most that one dilation by a cross can add to a stroke
_PLACES = ("data.raw_dir", "data.cache_dir")  # paths on one machine

# Fields (and prefixes of fields) that do not change what is trained.
_OUTSIDE = (
    "resume",
    "report_test",
    "keep_epochs",
    "quoted",
    "eval_batch_size",
    "search.",
    "mesh.",
    *_PLACES,
)
_AT_LEAST_ONE = (
    "epochs",
    "batch_size",
    "eval_batch_size",
    "population.size",
    "mesh.data",
    "data.drawn_train",
    "data.drawn_test",
    "search.trials",
    "search.round",
)
_AT_LEAST_ZERO = (
    "seed",
    "data.seed",
    "data.folds",
    "search.epochs",
    "search.halving",
    "search.retrain",
    "data.train",
    "data.test",
    "data.drawn_extra",
    "population.slice",
    "early_stopping.patience",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.warmup",
    "augment.shift_x",
    "augment.shift_y",
    "augment.pen",
    "augment.blur",
    "augment.noise",
    "distill.views",
)
_BELOW_ONE = (
    "data.validation",
    "model.dropout",
    "label_smoothing",
    "optimizer.ema",
    "augment.scale",
)
_SEEDS = 2**32


def check(config: ConfigDict) -> None:
    """Raises UserError for a value that makes no sense; choices by name are checked where used."""
    fields = flatten(config)
    for name in (*_AT_LEAST_ONE, *_AT_LEAST_ZERO):
        least = int(name in _AT_LEAST_ONE)
        if fields[name] < least:
            raise UserError(f"config.{name} must be at least {least}, not {fields[name]}")
    for name in _BELOW_ONE:
        if not 0 <= fields[name] < 1:
            raise UserError(f"config.{name} must lie in [0, 1), not {fields[name]}")
    if config.augment.pen > MOST_PEN:
        raise UserError(f"config.augment.pen must be at most {MOST_PEN}, not {config.augment.pen}")
    if not 0 <= config.distill.weight <= 1 or config.distill.temperature <= 0:
        raise UserError("config.distill: weight must lie in [0, 1] and temperature above 0")
    if config.distill.views and not config.distill.teacher:
        raise UserError(
            f"config.distill.views={config.distill.views} needs --config.distill.teacher=DIR, "
            "a run that reads single digits"
        )
    numbers = config.data.dataset == "number"
    if config.data.nondigits and not numbers:
        raise UserError("config.data.nondigits is for config.data.dataset=number")
    if numbers and (config.data.fresh_pairs or config.distill.views or config.data.folds):
        raise UserError(
            "config.data.dataset=number goes without config.data.fresh_pairs, data.folds and "
            "distill.views, which are for one digit or two"
        )
    if config.seed + config.population.size > _SEEDS:
        raise UserError(f"config.seed must lie below 2**32, with every member's, not {config.seed}")
    if not all(isinstance(epoch, int | float) for epoch in config.optimizer.step_epochs):
        raise UserError(
            "config.optimizer.step_epochs must be numbers, like (10, 15), "
            f"not {tuple(config.optimizer.step_epochs)}"
        )
    fractions = fractions_of(config)
    if not all(isinstance(x, int | float) and 0 <= x < 1 for x in fractions):
        raise UserError(f"config.prune.fractions must lie in [0, 1), not {fractions}")
    if config.prune.run and (
        config.population.size not in (1, len(fractions)) or config.data.folds
    ):
        raise UserError(
            f"config.population.size={config.population.size}: a run that prunes has a member "
            f"for each of its {len(fractions)} fractions, and no folds"
        )
    if config.data.folds == 1:
        raise UserError("config.data.folds must be 0 or at least 2, not 1")
    if config.data.folds and size_of(config) % config.data.folds:
        raise UserError(
            f"config.population.size={config.population.size} is no multiple of "
            f"config.data.folds={config.data.folds}: member i leaves out fold i % folds"
        )
    check_choice("config.engine", config.engine, ENGINES)


def fractions_of(config: ConfigDict) -> tuple[float, ...]:
    """By member, of the weights that `config.prune` takes away; () without a run to prune."""
    return (tuple(config.prune.fractions) or FRACTIONS) if config.prune.run else ()


def size_of(config: ConfigDict) -> int:
    """Members: a population of one becomes one per fold, or one per fraction."""
    size = config.population.size
    return size if size > 1 else config.data.folds or len(fractions_of(config)) or 1


def source_label(source: str) -> str:
    """What names and titles carry of `data.source`: '' of MNIST, 'letters' of a path to letters."""
    if source in ("auto", "mnist"):
        return ""
    if not source.startswith("emnist/"):  # a name with a slash; of a path the last part
        source = Path(os.path.expanduser(source)).resolve().stem
    return re.sub(r"[^\w.]+", "-", source).strip("-")


def title_of(config: ConfigDict, kind: str = "") -> str:
    """What a run is called: NAME[-KIND], with its source where that isn't MNIST."""
    label = source_label(config.data.source)
    label = "" if label in config.name.split("-") else label
    return "-".join(filter(None, (config.name, kind, label)))


def folder_of(config: ConfigDict, kind: str = "") -> Path:
    """The default folder of a run."""
    return Path("runs") / title_of(config, kind)


def finished(config: ConfigDict) -> Path:
    """The default folder of a finished run; of source 'auto' perhaps that on drawn digits."""
    own = folder_of(config)
    if config.data.source != "auto" or (own / "config.json").exists():
        return own
    drawn = own.with_name(f"{own.name}-drawn")
    return drawn if (drawn / "config.json").exists() else own


def read(workdir: Path) -> Fields | None:
    """The config.json of a workdir, None without one; UserError if it is damaged or incomplete."""
    path = workdir / "config.json"
    try:
        recorded = complete(json.loads(path.read_text(encoding="utf-8")))
        fields = flatten(recorded)
        numbers = (*_AT_LEAST_ONE, *_AT_LEAST_ZERO, *_BELOW_ONE)
        if not (
            all(isinstance(fields[name], int | float) for name in numbers)
            and all(isinstance(fields[name], str) for name in ("data.source", "prune.run"))
        ):
            raise TypeError
        return recorded
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not the config of a run; --config.resume=False starts the run over"
        ) from None


_LATER: dict[str, Fields] = {  # fields that were added, and what they were before
    "data": {"classes": [], "sha256": "", "nondigits": 0},
    "augment": {"blur": 0.0, "noise": 0.0},
}


def complete(recorded: Fields) -> Fields:
    """A recorded config with the fields that earlier ones did not have."""
    return recorded | {part: {**fields, **recorded[part]} for part, fields in _LATER.items()}


def flatten(config: ConfigDict | Fields, prefix: str = "") -> Fields:
    """A nested config as {"data.source": value, ...}; tuples become lists, as in JSON."""
    flat: Fields = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def as_dict(config: ConfigDict) -> Fields:
    """A ConfigDict as plain JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def fingerprint(config: ConfigDict) -> bytes:
    """The fields, as JSON, in which all processes of one run must agree: all but `_PLACES`."""
    fields = {name: value for name, value in flatten(config).items() if name not in _PLACES}
    return json.dumps(fields, sort_keys=True).encode()


def changes(old: ConfigDict | Fields, new: ConfigDict | Fields) -> list[tuple[str, Any, Any]]:
    """The differences that make two configs different runs: (field, value in old, value in new)."""
    before, now = flatten(old), flatten(new)
    for name in before.keys() | now.keys():
        if name.startswith("augment."):  # a registered one may have come or gone
            before.setdefault(name, 0.0)
            now.setdefault(name, 0.0)
    outside: tuple[str, ...] = _OUTSIDE
    if before.get("data.sha256") and before["data.sha256"] == now.get("data.sha256"):
        outside = (*outside, "data.source", "data.test_source")  # the same data, elsewhere
    return [
        (name, before.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(before.keys() | now.keys())
        if not name.startswith(outside) and before.get(name) != now.get(name)
    ]


def differences(recorded: Fields, config: ConfigDict | Fields) -> list[str]:
    """`changes` as text for an error message, from a recorded config to a given one."""
    return [f"{field}: {old} there, {new} now" for field, old, new in changes(recorded, config)]
