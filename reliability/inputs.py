"""Damaged files and command lines: each is read correctly or refused with one clear line."""

import gzip
import hashlib
import json
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageDraw

import launch
from configs import two_head
from digits_jax import models, settings
from digits_jax.core import optim
from digits_jax.data import pictures, sources
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError
from digits_jax.report import artifacts, results
from digits_jax.training.checkpoint import Checkpoints
from digits_jax.training.predictor import FILE, Predictor
from digits_jax.training.reader import Reader as NumberReader
from digits_jax.training.reader import shipped
from digits_jax.training.train import train

HEADER = 64  # bytes
_SECONDS = 20  # after which a reader counts as hanging


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


class Reader(NamedTuple):
    """read: path -> content; seed: an undamaged file; exact: a checksum protects the file, so that
    it must be refused or read as it was.
    """

    read: Callable[[Path], Any]
    seed: Path
    exact: bool = True


def mutated(seed: bytes, rng: random.Random, end: int | None = None) -> bytes:
    """`seed` with some bytes flipped, deleted, repeated or replaced, or with its end cut off.

    end: only among its first bytes.
    """
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(data), end or len(data)) + 1)
        length = rng.choice((1, 2, 4, 16, 64))
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(length)
            case 5:
                data[at : at + length] = rng.choice((b"\0", b"\xff", b"9")) * length
            case 6:
                del data[at:]
    return bytes(data)


@contextmanager
def _watched() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _outcome(attempt: Callable[[], str]) -> str:
    """The result of `attempt`, or how it failed."""
    try:
        with _watched():
            return attempt()
    except UserError:
        return "refused"
    except Hang:
        return "hung"
    except (Exception, SystemExit) as error:
        return f"raised {error!r}"


def _same(one: Any, other: Any) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(np.array_equal, leaves, others))


def fuzz(
    reader: Reader, count: int, rng: random.Random, folder: Path, end: int | None = None
) -> Counter:
    """How many files were read or refused; none may hang, raise another error or be wrong.

    end: of every second file only so many bytes at its beginning are damaged.
    """
    right, seed = reader.read(reader.seed), reader.seed.read_bytes()
    counts: Counter = Counter()
    path = folder / f"fuzzed{reader.seed.suffix}"
    for i in range(count):
        data = mutated(seed, rng, end if i % 2 else None)
        path.write_bytes(data)

        def attempt() -> str:
            value = reader.read(path)
            return "wrong" if reader.exact and not _same(value, right) else "read"

        outcome = _outcome(attempt)
        counts[outcome] += 1
        if outcome not in ("read", "refused"):
            counts[f"{outcome}, for example"] = 1
            (folder / f"bad-{len(counts)}-{reader.seed.name}").write_bytes(data)
    return counts


def readers(folder: Path, cache: Path) -> dict[str, Reader]:
    """Writes an undamaged file of every kind into `folder`; returns their readers."""
    rng, recipe = np.random.default_rng(0), RECIPES["mnist"]
    images = rng.integers(0, 256, (3, 28, 28), np.uint8)
    np.savez_compressed(folder / "images.npz", images=images, labels=np.arange(3))
    np.savez(folder / "plain.npz", images=images)
    ink = np.zeros((40, 60), np.uint8)
    ink[8:32, 20:26] = 255
    Image.fromarray(ink).save(folder / "drawn.png")
    Image.fromarray(images[0]).convert("P").save(folder / "exact.png")
    content = sources._header((5, 28, 28)) + rng.integers(0, 256, 5 * 784, np.uint8).tobytes()
    fuzzed = {"fuzzed": ((5, 28, 28), hashlib.sha256(content).hexdigest())}
    (folder / "digits.idx").write_bytes(content)
    (folder / "digits.gz").write_bytes(gzip.compress(content))

    config = two_head.get_config("mlp")
    config.data.update(source="drawn", drawn_train=200, drawn_test=50, train=96, test=40)
    config.data.cache_dir = str(cache)
    config.model.hidden, config.epochs, config.batch_size = (4,), 2, 32
    run = folder / "run"
    train(config, run)
    trained = Predictor(run)

    def user(path: Path) -> Any:
        return pictures.read(path, "auto", recipe)[:2]

    def idx(path: Path) -> Any:
        with mock.patch.dict(sources.FILES, fuzzed):
            return sources._read_idx(path, "fuzzed")

    def weights(path: Path) -> Any:
        trained.read(path)
        return trained.weights

    def in_place(name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def call(path: Path) -> Any:
            other = folder / "in-place"
            other.mkdir(exist_ok=True)
            shutil.copy(path, other / name)
            return read(other)

        return call

    return {
        "npz of images": Reader(user, folder / "images.npz"),
        "npz, not compressed": Reader(user, folder / "plain.npz"),
        "png": Reader(user, folder / "drawn.png"),
        "png with a palette": Reader(user, folder / "exact.png"),
        "idx": Reader(idx, folder / "digits.idx"),
        "idx.gz": Reader(idx, folder / "digits.gz"),
        "model.npz": Reader(weights, run / FILE),
        "config.json": Reader(in_place("config.json", settings.read), run / "config.json", False),
        "metrics.jsonl": Reader(
            lambda path: artifacts.rewind(path, 1), run / "metrics.jsonl", False
        ),
        "summary.json": Reader(in_place("summary.json", results.read), run / "summary.json", False),
    }


KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # of pictures: what Image.save is told
    "PNG": ("PNG", {}),
    "PNG of 16 bits": ("PNG", {}),
    "PNG, animated": ("PNG", {"save_all": True}),
    "JPEG": ("JPEG", {"quality": 80}),
    "JPEG, progressive": ("JPEG", {"quality": 80, "progressive": True}),
    "JPEG in CMYK": ("JPEG", {"quality": 80}),
    "WebP": ("WEBP", {"quality": 80}),
    "WebP without loss": ("WEBP", {"lossless": True}),
    "WebP, animated": ("WEBP", {"save_all": True}),
    "BMP": ("BMP", {}),
    "GIF": ("GIF", {}),
    "GIF, animated": ("GIF", {"save_all": True}),
    "TIFF": ("TIFF", {}),
    "TIFF, deflated": ("TIFF", {"compression": "tiff_deflate"}),
    "TIFF with JPEG": ("TIFF", {"compression": "jpeg"}),
    "TIFF of floats": ("TIFF", {"compression": "tiff_lzw"}),
    "PPM": ("PPM", {}),
    "AVIF": ("AVIF", {"quality": 70}),
}


def pictures_of_sevens(folder: Path) -> dict[str, Reader]:
    """Writes a photograph of a 7 as every kind of file; returns readers of its text.

    Where a kind can say so, it is stored upside down.
    """
    read = NumberReader(Predictor(shipped()))
    rng, paper = np.random.default_rng(0), Image.new("L", (140, 90))
    ImageDraw.Draw(paper).line([(42, 24), (88, 24), (66, 72)], fill=150, width=8, joint="curve")
    ink = np.asarray(paper)
    grey = (225 - ink + rng.integers(-9, 10, ink.shape)).astype(np.uint8)
    images = {
        "PNG of 16 bits": Image.fromarray(grey.astype(np.uint16) * 257),
        "TIFF of floats": Image.fromarray(grey.astype(np.float32) / 255),
        "JPEG in CMYK": Image.fromarray(grey).convert("CMYK"),
    }
    exif = Image.Exif()
    exif[0x0112] = 3
    seeds = {}
    for i, (name, (kind, how)) in enumerate(KINDS.items()):
        image = images.get(name, Image.fromarray(grey).convert("RGB"))
        more: dict[str, Any] = {}
        if kind not in ("BMP", "GIF", "PPM"):
            image, more = image.transpose(Image.Transpose.ROTATE_180), {"exif": exif}
        if "save_all" in how:
            more["append_images"] = [image.rotate(9)]
        image.save(folder / f"{i}.{kind}", kind, **how, **more)
        seeds[name] = Reader(lambda path: str(read.picture(path)), folder / f"{i}.{kind}", False)
    return seeds


def checkpoints(folder: Path, count: int, rng: random.Random) -> Counter:
    """A damaged file in the newest checkpoint: it reads as it was, or the one before is taken."""
    state = {"a": np.arange(1000, dtype=np.float32), "n": np.asarray(7, np.int32)}
    older = jax.tree.map(lambda x: x - 1, state)
    kept, damaged = folder / "kept", folder / "damaged"
    counts: Counter = Counter()
    with Checkpoints(kept) as saved:
        for epoch, tree in enumerate((older, state), 1):
            saved.save(epoch, tree, {"seconds": epoch})
    files = [p for p in (kept / "checkpoints" / "2").rglob("*") if p.is_file()]
    for _ in range(count):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(kept, damaged)
        path = damaged / rng.choice(files).relative_to(kept)
        path.write_bytes(mutated(path.read_bytes(), rng))

        def attempt() -> str:
            with Checkpoints(damaged) as one:
                epoch, tree, _ = one.restore(state)  # type: ignore[misc]
            outcome = {1: "the one before", 2: "read"}[epoch]
            return outcome if _same(tree, (older, state)[epoch - 1]) else "wrong"

        counts[_outcome(attempt)] += 1
    return counts


ARGUMENTS = (
    "--config=configs/mnist100.py:cnn",
    "--config.epochs=5",
    "--config.optimizer.learning_rate=3e-3",
    "--config.optimizer.schedule=cosine",
    "--config.model.features=(16, 32)",
    "--config.data.validation=0.1",
    "--config.population.size=2",
    "--mode=train",
    "--workdir=runs/x",
)


def arguments(count: int, rng: random.Random) -> Counter:
    """Command lines with one damaged flag."""
    counts: Counter = Counter()
    for _ in range(count):
        chosen = list(ARGUMENTS[:1]) + rng.sample(ARGUMENTS[1:], 3)
        at = rng.randrange(len(chosen))
        chosen[at] = mutated(chosen[at].encode(), rng).decode("utf-8", "replace").replace("\0", "")

        def attempt(chosen: list[str] = chosen) -> str:
            flags.FLAGS.unparse_flags()
            for field in [name for name in flags.FLAGS if name.startswith("config.")]:
                delattr(flags.FLAGS, field)
            sys.argv = ["launch.py", *chosen]  # where ml_collections looks for --config.FIELD
            launch.cli.parse(sys.argv)
            config = flags.FLAGS["config"].value
            if config is not None:
                settings.check(config)
                models.from_config(config, RECIPES[config.data.dataset].heads)
                optim.transformation(config.optimizer)
                optim.rate_schedule(config.optimizer, config.epochs, 10)
            return "read"

        outcome = _outcome(attempt)
        counts[f"{outcome} for {chosen[at]!r}" if "raised" in outcome else outcome] += 1
    return counts


def table(counted: dict[str, Counter]) -> list[dict[str, Any]]:
    """A row for each reader."""
    return [
        {
            "reader": name,
            "inputs": sum(n for what, n in counts.items() if "for example" not in what),
            "read": counts["read"],
            "the one before": counts["the one before"],
            "refused": counts["refused"],
            "wrong, hung or raised": json.dumps(
                {
                    what: n
                    for what, n in counts.items()
                    if what not in ("read", "refused", "the one before")
                }
            ),
        }
        for name, counts in counted.items()
    ]
