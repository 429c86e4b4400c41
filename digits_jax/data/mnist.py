"""MNIST: the four IDX files of LeCun, Cortes and Burges (1998) as arrays.

They come from a folder of the user's, a prepared cache, or a download by tensorflow-datasets from
its official address. Whichever way, the SHA-256 of their content must be MNIST's.
"""

import concurrent.futures
import contextlib
import gzip
import hashlib
import logging
import math
import os
import pathlib
import shutil
import threading
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from digits_jax.errors import UserError
from digits_jax.types import Digits

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds of silence after which the network counts as absent
REPLACE = "delete it and fetch it again"


# {file: (shape of its uint8 array, SHA-256 of the whole IDX file, unpacked)}
FILES: dict[str, tuple[tuple[int, ...], str]] = {
    "train-images-idx3-ubyte": (
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def load(raw_dir: str, cache_dir: pathlib.Path) -> tuple[Digits, Digits]:
    """MNIST's train (60,000) and test (10,000) digits as read-only NumPy arrays.

    Read from `raw_dir` where one is given (the four files, plain or .gz), else from the cache in
    `cache_dir`/mnist, else downloaded, which gives up within 15 s where there is no network. What
    did not come from the cache is written there.
    Raises UserError where the digits can't be had or are not MNIST's.
    """
    cache = cache_dir / "mnist"
    if raw_dir:
        arrays = read(raw_dir)
        cached = all(os.path.isfile(cache / f"{name}.npy") for name in FILES)
    elif stored := _read_cache(cache):
        arrays, cached = stored, True
    else:
        arrays, cached = download(), False
    if not cached:
        _write_cache(cache, arrays)
    return Digits(*arrays[:2]), Digits(*arrays[2:])


def read(raw_dir: str) -> list[np.ndarray]:
    """Train images and labels, test images and labels, from the four files in a folder.

    Raises UserError naming the file that is missing, unreadable or altered.
    """
    folder = pathlib.Path(os.path.expanduser(raw_dir))
    return [_read_idx(_find(folder, name), name) for name in FILES]


def download(manager: Any = None) -> list[np.ndarray]:
    """The same four arrays, fetched by tensorflow-datasets.

    `manager`: a tfds DownloadManager; without, one on the usual folder (~/tensorflow_datasets).
    What it downloaded before it takes from there, without asking the network.
    Raises UserError, with the ways out, within 15 s where there is no network.
    """
    import tensorflow_datasets as tfds  # slow, and rarely needed

    folder = pathlib.Path(
        manager.download_dir if manager else f"{tfds.core.constants.DATA_DIR}/downloads"
    ).expanduser()
    urls = {url.rpartition("/")[2]: url for url in tfds.builder_cls("mnist").url_infos}
    unfinished = set(folder.glob("*/*.tmp.*"))
    try:
        with _quick_and_quiet():
            if not manager:
                tfds.disable_progress_bar()
                manager = tfds.download.DownloadManager(download_dir=folder, dataset_name="mnist")
            # One by one, so that the first to fail leaves no other behind on a thread.
            paths = [pathlib.Path(manager.download(urls[f"{name}.gz"])) for name in FILES]
    except Exception as error:  # requests', urllib3's, tfds' and the file system's
        for left_over in set(folder.glob("*/*.tmp.*")) - unfinished:
            shutil.rmtree(left_over, ignore_errors=True)
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"MNIST can't be downloaded to {folder} ({reason}). Connect to the internet once, or "
            "put its four files in a folder and pass --config.data.raw_dir=DIR, or train on drawn "
            "digits with --config.data.source=drawn"
        ) from error
    return [_read_idx(path, name) for path, name in zip(paths, FILES, strict=True)]


@contextlib.contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Within, a download by tfds neither outlasts PATIENCE in silence nor logs its every step.

    Left alone, tfds waits for ever for a firewall that drops packets, and retries for minutes.
    """
    import requests

    adapter: Any = requests.adapters.HTTPAdapter
    absl_log = logging.getLogger("absl")
    send, level = adapter.send, absl_log.level

    def send_in_time(self: Any, request: Any, **kwargs: Any) -> Any:
        self.max_retries = self.max_retries.new(total=0)
        answer: concurrent.futures.Future = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(send(self, request, **{**kwargs, "timeout": PATIENCE}))
            except Exception as error:
                answer.set_exception(error)

        # requests' own timeout covers neither the name look-up nor a host of many addresses.
        threading.Thread(target=run, daemon=True).start()
        return answer.result(PATIENCE)

    adapter.send = send_in_time
    absl_log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        adapter.send = send
        absl_log.setLevel(level)


def _header(shape: tuple[int, ...]) -> bytes:
    """An IDX header: two zero bytes, 8 for uint8, the number of axes and their lengths."""
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()


def _sha256(array: np.ndarray) -> str:
    """The SHA-256 of `array` as an IDX file."""
    digest = hashlib.sha256(_header(array.shape))
    digest.update(array)
    return digest.hexdigest()


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / f"{name}.gz", folder / name):
        if os.path.isfile(path):
            return path
    raise UserError(f"data.raw_dir: there is no {name}.gz (nor {name}) in {folder}")


def _read_idx(path: pathlib.Path, name: str) -> np.ndarray:
    """The array in the IDX file `path`, plain or .gz; UserError unless it is FILES[name]."""
    shape, expected = FILES[name]
    header = _header(shape)
    size = len(header) + math.prod(shape)
    content = bytearray()
    problem = "was altered"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # No more than expected, however much a damaged file unpacks to.
            while len(content) <= size and (part := file.read1(min(1 << 20, size + 1))):
                content += part
    except (OSError, EOFError, zlib.error) as error:
        problem = f"can't be read ({error})"
    if len(content) < size and problem == "was altered":
        problem = "was cut short"
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise UserError(
            f"{path} {problem}, {REPLACE}: of {size:,} bytes expected with SHA-256 {expected}, "
            f"found {len(content):,} with {found}"
        )
    return np.frombuffer(bytes(content), np.uint8, offset=len(header)).reshape(shape)


def _read_cache(cache: pathlib.Path) -> list[np.ndarray] | None:
    """The four arrays, or None where they were never prepared or (with a warning) got damaged."""
    arrays = []
    for name, (_, expected) in FILES.items():
        path = cache / f"{name}.npy"
        try:
            array = np.load(path, allow_pickle=False)
            if array.dtype != np.uint8 or _sha256(array) != expected:
                raise ValueError("its content was altered")
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged .npy header can raise nearly anything
            log.warning("%s can't be used and will be prepared anew: %s", path, error)
            return None
        array.flags.writeable = False
        arrays.append(array)
    return arrays


def _write_cache(cache: pathlib.Path, arrays: list[np.ndarray]) -> None:
    """Prepares the cache; where it can't be written, that is a warning and no more."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name, array in zip(FILES, arrays, strict=True):
            part = cache / f"{name}.{uuid.uuid4().hex}.part"
            try:
                with part.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                os.replace(part, cache / f"{name}.npy")
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        log.warning("MNIST can't be cached in %s: %s", cache, error)
