"""What is checked about a config before anything is computed, and how two of them differ."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from digits_jax.errors import UserError, check_choice

# What runs of earlier versions did, whose config.json does not know these fields.
_SINCE = {
    "bfloat16": False,
    "keep_epochs": False,
    "quoted": [],
    "data.folds": 0,
    "distill.teacher": "",
    "distill.weight": 0.9,
    "distill.temperature": 4.0,
    "distill.views": 0,
    "data.drawn_extra": 0,
    "prune.run": "",
    "prune.fractions": [],
    "augment.pen": 0.0,
}

ENGINES = ("jax", "numpy")
FRACTIONS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # that config.prune takes for ()
MOST_PEN = 2.0  # px; a dilation by a cross is no more
_PLACES = ("data.raw_dir", "data.cache_dir")  # on one machine

# Fields that say where things are or what happens around a run, not what is trained.
_OUTSIDE = (
    *("resume", "report_test", "keep_epochs", "quoted", "eval_batch_size", "search.", "mesh."),
    *_PLACES,
)

_AT_LEAST_ONE = (
    *("epochs", "batch_size", "eval_batch_size", "population.size", "mesh.data"),
    *("data.drawn_train", "data.drawn_test", "search.trials", "search.round"),
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
    "distill.views",
)
_BELOW_ONE = (
    *("data.validation", "model.dropout", "label_smoothing", "optimizer.ema", "augment.scale"),
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
    """By member, of the weights that `config.prune` takes away."""
    return tuple(config.prune.fractions) or (FRACTIONS if config.prune.run else ())


def size_of(config: ConfigDict) -> int:
    """Members: a population of one becomes one per fold, or one per fraction."""
    size = config.population.size
    return size if size > 1 else config.data.folds or len(fractions_of(config)) or 1


def apart(own: Path) -> Path:
    """The folder beside `own` for what `data.source=auto` trains on drawn digits."""
    return own.with_name(f"{own.name}-drawn")


def finished(name: str) -> Path:
    """The default folder of a finished run; the one on drawn digits where there is no other."""
    own = Path("runs") / name
    there = [path for path in (own, apart(own)) if (path / "config.json").exists()]
    return (there or [own])[0]


def read(workdir: Path) -> dict[str, Any] | None:
    """The config.json of a workdir, None without one; UserError if it cannot be read."""
    path = workdir / "config.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(recorded["data"]["source"], str):
            raise TypeError
        int(recorded["population"]["slice"])
        for field, value in _SINCE.items():
            *folders, name = field.split(".")
            node = recorded
            for folder in folders:
                node = node.setdefault(folder, {})
            node.setdefault(name, value)
        return recorded
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not the config of a run; --config.resume=False starts the run over"
        ) from None


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """A nested config as {'data.source': value, ...}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """A ConfigDict as plain JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def fingerprint(config: ConfigDict) -> bytes:
    """What processes that train together have in common: all but where a machine keeps data."""
    fields = {name: value for name, value in flatten(config).items() if name not in _PLACES}
    return json.dumps(fields, sort_keys=True).encode()


def changes(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """(field, value in `old`, value in `new`) of what makes two configs different runs."""
    before, now = flatten(old), flatten(new)
    return [
        (name, before.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(before.keys() | now.keys())
        if not name.startswith(_OUTSIDE) and before.get(name) != now.get(name)
    ]


def differences(recorded: Any, config: ConfigDict) -> list[str]:
    """The same for people, about a run that is there and a config that is given."""
    return [f"{field}: {old} there, {new} now" for field, old, new in changes(recorded, config)]
