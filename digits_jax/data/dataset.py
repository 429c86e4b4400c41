"""From a config to a dataset on the device: digits, splits, and what normalises them."""

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import files
from digits_jax.data import drawn, named, nondigits, numbers, own, recipes, sources
from digits_jax.data.named import NAMED
from digits_jax.data.recipes import DIGITS, RECIPES, Recipe, generator, recipe_of
from digits_jax.errors import UserError, check_choice, nearest
from digits_jax.types import Digits, Normalizer, Split

log = logging.getLogger(__name__)
SOURCES = ("auto", "mnist", "drawn", *NAMED)
HELD_OUT = 1 / 6  # of a set without a test part, as many as MNIST's
NORMALIZERS = ("unit", "global", "feature")
_GREY_LEVEL = 1 / 255


class Dataset(NamedTuple):
    """What a run trains on.

    source, test_source: of the test digits, a name or a path; validation is None where it is off;
    digits: how many different ones train, with cross-validation each member; drawn_extra: how many
    of them are drawn ones beside MNIST's; classes: {head: their names}; sha256: of the images and
    labels of the source; held_out: whether the test split is a part of it that has no own.
    """

    recipe: Recipe
    source: str
    test_source: str
    train: Split
    validation: Split | None
    test: Split
    normalizer: Normalizer
    digits: int
    drawn_extra: int
    classes: dict[str, list[str]]
    sha256: str
    held_out: bool


class _Read(NamedTuple):
    """Digits of a source."""

    train: Digits
    test: Digits
    sha256: str
    held_out: bool = False


def cache_dir(config: ConfigDict) -> Path:
    """Where prepared data and compiled programs live: `data.cache_dir`, or the user's own cache.

    Without a home directory, that is a folder of the temporary one. UserError where a ~ can't be
    expanded, or where that folder is not this user's.
    """
    if config.cache_dir:
        return sources.expanded("data.cache_dir", config.cache_dir)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digits_jax"
    except RuntimeError:  # an unknown user without HOME, as in a container
        return _temporary()


def _temporary() -> Path:
    """A folder that belongs to this user alone: others may write beside it."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # as Windows has it in st_uid
    try:
        folder = Path(tempfile.gettempdir()) / f"digits_jax-{user}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user:
            return folder
        problem = f"{folder} is somebody else's"
    except OSError as error:
        problem = str(error)
    raise UserError(f"no home directory is known, and {problem}; pass --config.data.cache_dir=DIR")


def find(config: ConfigDict) -> tuple[ConfigDict, str]:
    """Resolves 'auto' in `config`, the `config.data` of a run, to 'mnist' or 'drawn', and fills in
    `classes` and `sha256`.

    -> (a copy of `config`, why MNIST is not available, or ''). Raises UserError for an unknown
    source, if `raw_dir` is given and cannot be read, and for data that are not those of `sha256`.
    """
    found: dict[str, str] = {}
    fields = ("source", "test_source") if config.test_source else ("source",)
    for field in fields:
        _check_source(field, config[field])
        if config[field] == "auto":
            try:
                sources.load(config.raw_dir, cache_dir(config))
                found[field] = ""
            except UserError as error:
                if config.raw_dir:
                    raise _about(error, config, field) from None
                found[field] = str(error)
    if found:
        config = config.copy_and_resolve_references()
        config.update({field: "drawn" if why else "mnist" for field, why in found.items()})
    if found.get("test_source"):
        way = "--config.data.test_source=mnist makes that an error"
        log.warning("the test digits are drawn ones: %s; %s", found["test_source"], way)
    config = with_classes(config)
    digests = [_own(config, f).digest for f in fields if config[f] not in ("mnist", "drawn")]
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest() if digests else ""
    if config.sha256 and config.sha256 != sha256:
        raise UserError(
            f"data.source={config.source}: the data are not those that this run was trained on; "
            "put them back, or train it again with --config.resume=False"
        )
    if sha256 != config.sha256:
        config = config.copy_and_resolve_references()
        config.sha256 = sha256
    return config, found.get("source", "")


def with_classes(config: ConfigDict) -> ConfigDict:
    """`config.data` with the names of its source's classes; UserError as `find` raises it."""
    fields = ("source", "test_source") if config.test_source else ("source",)
    for field in fields:
        _check_source(field, config[field])
    classes = [_classes(config[field]) for field in fields]
    if classes[-1] != classes[0]:
        raise UserError(
            f"data.test_source={config.test_source} has other classes than "
            f"data.source={config.source}"
        )
    if tuple(config.classes) == classes[0]:
        return config
    config = config.copy_and_resolve_references()
    config.classes = classes[0]
    return config


def _check_source(field: str, source: str) -> None:
    """Raises UserError unless `source` is the name of one, or a path."""
    if not source:
        raise UserError(f"data.{field} is empty; {nearest(source, SOURCES)}; or a path")
    if source not in SOURCES and not sources.expanded(f"data.{field}", source).exists():
        raise UserError(
            f"data.{field}: there is no '{source}', neither a file or folder nor a set of that "
            f"name; {nearest(source, SOURCES)}"
        )


def _classes(source: str) -> tuple[str, ...]:
    """The names of a source's classes; () for the ten digits."""
    if source in ("auto", "mnist", "drawn"):
        return ()
    if source in NAMED:
        names = NAMED[source].classes
    else:
        names = own.read(sources.expanded("data.source", source)).classes
    return () if names == DIGITS else names


def load(config: ConfigDict) -> Dataset:
    """The data set that `config` (`config.data` of a run) describes, on the default device.

    With source 'auto', MNIST, and digits drawn by a program where no way to MNIST works. Raises
    UserError where the source cannot be had.
    """
    check_choice("data.dataset", config.dataset, RECIPES)
    check_choice("data.normalize", config.normalize, NORMALIZERS)
    config, _ = find(config)
    recipe, read = recipe_of(config), _digits(config, "source")
    train, test = read.train, read.test
    if config.test_source:
        tests = _digits(config, "test_source")
        test = tests.test
        if tests.held_out:  # none of it trains
            test = _joined(tests.train, tests.test)

    if config.folds and config.normalize != "unit":
        raise UserError(
            "data.folds goes with data.normalize=unit; a fitted one would see each fold"
        )
    fraction = 1 / config.folds if config.folds else config.validation
    rng, n = generator(config.seed, "split"), len(train.labels)
    if config.folds:
        parts = recipes.split_folds(rng, n, config.folds)
    else:
        parts = [recipes.split_digits(rng, n, fraction)]
    kept, held_out = ([part[i] for part in parts] for i in range(2))
    if len(kept[0]) == 0 or (fraction and len(held_out[0]) == 0):
        field = "folds" if config.folds else "validation"
        raise UserError(
            f"data.{field}={config[field]} of {n} digits leaves none for training or for validation"
        )

    def some(ids: np.ndarray, n: int, source: str) -> np.ndarray:
        """`n` of `ids`; of other sets, which may stand class by class, at random."""
        if source not in ("mnist", "drawn"):
            ids = generator(config.seed, "some").permutation(ids)
        return np.sort(ids[:n])

    if config.train and recipe.digits == 1:  # of MNIST's; the drawn ones train beside them
        kept = [some(ids, config.train, config.source) for ids in kept]
    lacking = np.setdiff1d(train.labels, np.asarray(train.labels)[kept[0]])
    if len(lacking):
        name = recipes.names_of(config)[lacking[0]]
        log.warning("the class '%s' has no training example left beside validation", name)
    if config.drawn_extra and config.classes:
        raise UserError(f"data.drawn_extra: drawn digits are none of {config.source}'s classes")
    if config.drawn_extra and config.source != "drawn":
        extra = _drawn(cache_dir(config), 2 * config.seed, config.drawn_extra, "even")
        train = _joined(train, extra)
        more = np.arange(n, n + config.drawn_extra, dtype=np.int32)
        kept = [np.concatenate([ids, more]) for ids in kept]

    if config.dataset == "number" and config.classes:
        raise UserError("data.dataset=number is for digits, and the source has other classes")
    strange = _strange(config)  # by use: images of what is no digit, and an empty one
    if config.dataset == "number":
        begin = len(train.labels)
        train = _joined(train, strange["train"], strange["validation"])
        test = _joined(test, strange["test"])
        middle, end = begin + len(strange["train"].labels), len(train.labels)
        kept = [np.r_[ids, begin:middle].astype(np.int32) for ids in kept]
        held_out = [np.r_[ids, middle:end].astype(np.int32) for ids in held_out]

    def split(digits: Digits, use: str, ids: list[np.ndarray], n: int, few: bool = False) -> Split:
        rng = generator(config.seed, use)
        if config.dataset == "number":
            others = len(strange[use].labels)
            index = numbers.draw(rng, n, len(ids[0]) - others, others - 1)
        else:
            index = recipes.draw_pairs(rng, n, len(ids[0]), recipe.digits)
        rows, pool = np.stack([part[index] for part in ids]), np.stack(ids)
        if few:  # fresh pairs, too, are of these digits alone
            pool = pool[:, np.unique(index)]
        if not (config.folds and use != "test"):
            rows, pool = rows[0], pool[0]
        return Split(*digits, jnp.asarray(rows), jnp.asarray(pool))

    train, test = (Digits(jnp.asarray(d.images), jnp.asarray(d.labels)) for d in (train, test))
    whole, tested = config.train or recipe.train, np.arange(len(test.labels), dtype=np.int32)
    if config.test and recipe.digits == 1:
        tested = some(tested, config.test, config.test_source or config.source)
    training = split(train, "train", kept, whole, few=whole < recipe.train)
    validation = None
    if fraction:
        validation = split(train, "validation", held_out, max(round(fraction * whole), 1))
    first = training.of(0)
    used = np.asarray(first.pool) if config.fresh_pairs else np.unique(first.rows)
    return Dataset(
        recipe=recipe,
        source=config.source,
        test_source=config.test_source or config.source,
        train=training,
        validation=validation,
        test=split(test, "test", [tested], config.test or recipe.test),
        normalizer=fit_normalizer(config.normalize, training, recipe),
        digits=int((used < n + config.drawn_extra).sum()),
        drawn_extra=int(((used >= n) & (used < n + config.drawn_extra)).sum()),
        classes=recipes.class_names(config),
        sha256=read.sha256,
        held_out=read.held_out and not config.test_source,
    )


def _joined(*parts: Digits) -> Digits:
    return Digits(*map(np.concatenate, zip(*parts, strict=True)))


def _strange(config: ConfigDict) -> dict[str, Digits]:
    """For numbers, by the split's use: what is no digit, and at the end an empty image."""
    if config.dataset != "number":
        return {}
    found = {}
    for i, (use, share) in enumerate({"train": 1, "validation": 10, "test": 10}.items()):
        n = -(-config.nondigits // share)
        images, _ = _drawn(cache_dir(config), 3 * config.seed + i, n, "nondigits")
        labels = np.full(n + 1, numbers.STRANGE, np.uint8)
        labels[-1] = numbers.NOTHING
        found[use] = Digits(np.concatenate([images, np.zeros((1, 28, 28), np.uint8)]), labels)
    return found


def _own(config: ConfigDict, field: str) -> own.LabelledSet:
    """The set that `config[field]` names, which is neither MNIST nor drawn."""
    if config[field] in NAMED:
        return named.load(config[field], config.raw_dir, cache_dir(config))
    return own.read(sources.expanded(f"data.{field}", config[field]))


def _digits(config: ConfigDict, field: str) -> _Read:
    """The digits of the source that `config[field]` names."""
    cache, seed, source = cache_dir(config), 2 * config.seed, config[field]
    if source == "drawn":
        sizes = config.drawn_train, config.drawn_test
        train, test = (
            _drawn(cache, seed + i, n, distortion=config.drawn_distortion)
            for i, n in enumerate(sizes)
        )
        return _Read(train, test, own.digest((train, test), DIGITS))
    if source == "mnist":
        try:
            parts = sources.load(config.raw_dir, cache)
        except UserError as error:
            raise _about(error, config, field) from None
        return _Read(*parts, own.digest(parts, DIGITS))
    found = _own(config, field)
    if found.test:
        return _Read(found.train, found.test, found.digest)
    labels = np.asarray(found.train.labels)
    counts = np.bincount(labels, minlength=len(found.classes))
    if counts.min() < 2:
        raise UserError(
            f"data.{field}={source}: the class '{found.classes[counts.argmin()]}' has one example; "
            "without a test part it needs two or more"
        )
    held = recipes.hold_out(generator(config.seed, "held_out"), labels, HELD_OUT)
    kept = np.delete(np.arange(len(labels)), held)
    train, test = (Digits(*(array[ids] for array in found.train)) for ids in (kept, held))
    return _Read(train, test, found.digest, held_out=True)


def _about(error: UserError, config: ConfigDict, field: str) -> UserError:
    """The error, saying so where it is about the test digits alone."""
    if field == "source":
        return error
    return UserError(
        f"the test digits, data.test_source={config.test_source}: {error}; "
        "--config.data.test_source=drawn tests on drawn digits"
    )


def _drawn(cache: Path, seed: int, n: int, kind: str = "", distortion: float = 1.0) -> Digits:
    """Drawn digits, cached on disk. kind: '', 'even' (as in `drawn.digits`) or 'nondigits'.

    The file's name hashes the generator, JAX's version and the backend: rounding differs.
    """
    if n == 0:
        return Digits(np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8))
    folder = Path(drawn.__file__).parent
    code = b"".join((folder / name).read_bytes() for name in ("drawn.py", "skeletons.json"))
    if kind == "nondigits":
        code += b"".join((folder / f"nondigits.{end}").read_bytes() for end in ("py", "json"))
    code += f"{jax.__version__} {jax.default_backend()} {distortion}".encode()
    name = f"{hashlib.sha256(code).hexdigest()[:12]}-{seed}-{n}{f'-{kind}' if kind else ''}.npy"
    path = cache / "drawn" / name
    table = files.read_array(path)
    if table is not None and table.shape == (n, 785) and table.dtype == np.uint8:
        return Digits(table[:, 1:].reshape(n, 28, 28), table[:, 0])
    if kind == "nondigits":
        made = Digits(nondigits.nondigits(seed, n), np.full(n, numbers.STRANGE, np.uint8))
    else:
        made = drawn.digits(seed, n, even=kind == "even", distortion=distortion)
    table = np.concatenate([made.labels[:, None], made.images.reshape(n, -1)], axis=1)
    try:
        files.write_array(path, table)
    except OSError as error:
        log.warning("the drawn digits could not be cached in %s: %s", path.parent, error)
    return made


def fit_normalizer(kind: str, split: Split, recipe: Recipe) -> Normalizer:
    """Fitted on the examples of `split`: 'unit' leaves [0, 1]; 'global' has one mean and standard
    deviation; 'feature' has them per pixel, and leaves a pixel unscaled that varies by less than a
    grey level.
    """
    mean, deviation = np.zeros(recipe.shape), np.ones(recipe.shape)
    if kind != "unit":
        total, squares = np.zeros(recipe.shape), np.zeros(recipe.shape)
        index = np.asarray(split.rows)
        for start in range(0, len(index), 10_000):
            composed = recipe.compose(split.images[index[start : start + 10_000]])
            images = np.asarray(composed, np.float64) / 255
            total += images.sum(axis=0)
            squares += (images**2).sum(axis=0)
        mean, square = total / len(index), squares / len(index)
        if kind == "global":
            mean, square = np.full_like(mean, mean.mean()), np.full_like(square, square.mean())
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        deviation = np.where(deviation < _GREY_LEVEL, 1, deviation)
    return Normalizer(jnp.asarray(mean, jnp.float32), jnp.asarray(1 / deviation, jnp.float32))


def examples(split: Split, recipe: Recipe) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """All of `split` on the host: (images [N, H, W] uint8, labels {head: [N] int32})."""
    return np.asarray(recipe.compose(split.images[split.rows])), labels(split, recipe)


def labels(split: Split, recipe: Recipe) -> dict[str, np.ndarray]:
    """{head: [N] int32} on the host; [F, N] where the rows have an axis of folds."""
    shape = split.rows.shape[:-1]
    flat = recipe.label(split.labels[split.rows].reshape(-1, recipe.digits))
    return {head: np.asarray(values).reshape(shape) for head, values in flat.items()}


def by_class(split: Split, recipe: Recipe, columns: int) -> Split:
    """Some of `split` to look at, sorted by the class of the first head.

    Up to twenty classes give `columns` examples each, more give one, and at most a hundred.
    """
    head, classes = next(iter(recipe.heads.items()))
    truth = labels(split, recipe)[head]
    each, step = columns if classes <= 20 else 1, -(-classes // 100) if classes > 100 else 1
    picked = np.concatenate([np.flatnonzero(truth == c)[:each] for c in range(0, classes, step)])
    return split._replace(rows=split.rows[picked])
