"""MNIST: the four IDX files of LeCun, Cortes and Burges (1998) as arrays.

They come from the user's folder, a prepared cache, or a download by tensorflow-datasets. In each
case the SHA-256 of their content is checked.
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
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from digits_jax import files
from digits_jax.console import status
from digits_jax.errors import UserError
from digits_jax.types import Digits

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds without an answer until a download times out

_UINT8, _BYTES = 8, {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}  # IDX's types, bytes per value
_GZIP = b"\x1f\x8b"

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

    Read from `raw_dir` if given (see `read`), else from the cache `cache_dir`/mnist, else
    downloaded; then cached. Raises UserError if that fails, within 15 s if there is no network.
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
        write_cache(cache, dict(zip(FILES, arrays, strict=True)))
    return Digits(*arrays[:2]), Digits(*arrays[2:])


def expanded(field: str, path: str) -> pathlib.Path:
    """`path` with ~ expanded; UserError, naming `field`, where no home directory is known."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{field}={path}: ~ cannot be expanded without a home directory; give the full path"
        ) from None


def read(raw_dir: str) -> list[np.ndarray]:
    """Train images and labels, test images and labels, from the four files in a folder.

    Plain or gzipped, whatever their suffix, in the layouts of torchvision (MNIST/raw) and Kaggle
    (train-images.idx3-ubyte, or folders of these names). Of several copies, the first with the
    expected SHA-256 is used. Raises UserError naming the file that is missing or wrong.
    """
    folder = expanded("data.raw_dir", raw_dir)
    arrays = []
    for name in FILES:
        copies = list(_copies(folder, name))
        if not copies:
            raise UserError(f"data.raw_dir: there is no {name}.gz (nor {name}) in {folder}")
        arrays.append(_first(copies, name))
    return arrays


def download(manager: "tfds.download.DownloadManager | None" = None) -> list[np.ndarray]:
    """The same four arrays, from tensorflow-datasets: downloaded, or from its download cache.

    manager: a tfds DownloadManager; by default one on tfds' own folder (~/tensorflow_datasets).
    Raises UserError, naming the alternatives, within 15 s if there is no network.
    """
    status("fetching MNIST")
    import tensorflow_datasets as tfds  # slow to import, and rarely needed

    usual = f"{tfds.core.constants.DATA_DIR}/downloads"
    folder = expanded(
        "the environment's TFDS_DATA_DIR", str(manager.download_dir if manager else usual)
    )
    ways = "--config.data.raw_dir=DIR, or train on drawn digits with --config.data.source=drawn"
    if manager:
        ways = 'builder_kwargs={"raw_dir": "DIR"}'
    infos = tfds.builder_cls("mnist").url_infos.items()
    urls = {url.rpartition("/")[2].removesuffix(".gz"): (url, info) for url, info in infos}
    private = f"digits_jax.{uuid.uuid4().hex}"  # a folder of this process alone
    arrays = []
    try:
        with quick_and_quiet():
            # One after another, so that no download thread goes on after the first failure.
            for name in FILES:
                array = _downloaded(folder, name, *urls[name])
                if array is None:
                    if not manager:
                        tfds.disable_progress_bar()
                        new = tfds.download.DownloadManager
                        manager = new(download_dir=folder, dataset_name="mnist")
                    url = urls[name][0]
                    resource = tfds.download.Resource(url=url, relative_download_dir=private)
                    path = pathlib.Path(manager.download(resource))
                    array = _read_idx(path, name)
                    if path.parent.name == private:  # to where tfds looks for it
                        with contextlib.suppress(OSError):  # Windows: another process reads it
                            for part in (path.with_name(f"{path.name}.INFO"), path):
                                part.replace(part.parent.parent / part.name)
                arrays.append(array)
    except Exception as error:  # requests', urllib3's, tfds' and the file system's
        raise UserError(
            f"MNIST can't be downloaded to {folder} ({reason(error)}). Connect to the internet "
            f"once, or put its four files in a folder and pass {ways}"
        ) from None
    finally:
        for left_over in (folder / private, *folder.glob(f"*/{private}")):
            shutil.rmtree(left_over, ignore_errors=True)
    return arrays


def _downloaded(
    folder: pathlib.Path, name: str, url: str, info: "tfds.core.download.checksums.UrlInfo | None"
) -> np.ndarray | None:
    """The array in tfds' cached download of `url`, by any tfds dataset; None if not cached."""
    from tensorflow_datasets.core.download import resource

    names = [resource.get_dl_fname(url, checksum) for checksum in (info and info.checksum, None)]
    paths = [path for kept in names for path in (folder / kept, *folder.glob(f"*/{kept}"))]
    paths = [path for path in paths if os.path.isfile(path)]
    try:
        return _first(paths, name) if paths else None
    except UserError as error:
        log.warning("it will be downloaded anew: %s", error)
        return None


def reason(error: BaseException) -> str:
    """The type of the error, and the operating system's message if there is one."""
    link: BaseException | None = error
    while link and not getattr(link, "strerror", None):
        link = link.__cause__ or link.__context__
    words = getattr(link, "strerror", "") or str(error).partition("\n")[0]
    return ": ".join(filter(None, (type(error).__name__, words)))


@contextlib.contextmanager
def quick_and_quiet() -> Iterator[None]:
    """A context in which downloads by tfds time out after PATIENCE seconds and log only warnings.

    By default tfds waits forever behind a firewall that drops packets, and retries for minutes.
    """
    import requests

    adapter: Any = requests.adapters.HTTPAdapter
    absl_log = logging.getLogger("absl")
    send, level = adapter.send, absl_log.level

    def send_in_time(
        self: requests.adapters.HTTPAdapter, request: requests.PreparedRequest, **kwargs: Any
    ) -> requests.Response:
        self.max_retries = self.max_retries.new(total=0)
        answer: concurrent.futures.Future[requests.Response] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(send(self, request, **{**kwargs, "timeout": PATIENCE}))
            except Exception as error:
                answer.set_exception(error)

        # requests' own timeout covers neither DNS look-ups nor hosts with many addresses.
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
    return bytes([0, 0, _UINT8, len(shape)]) + np.array(shape, ">u4").tobytes()


def _sha256(array: np.ndarray) -> str:
    """The SHA-256 of `array` as an IDX file."""
    digest = hashlib.sha256(_header(array.shape))
    digest.update(array)
    return digest.hexdigest()


def _copies(folder: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """The files of `folder` that may be FILES[name]."""
    names = [f"{stem}{end}" for end in (".gz", "") for stem in (name, name.replace("-idx", ".idx"))]
    for place in (folder, folder / "MNIST" / "raw", folder / "raw"):
        for path in (place / name for name in names):
            inside = (path / name for name in names)
            yield from (file for file in (path, *inside) if os.path.isfile(file))


def _first(paths: list[pathlib.Path], name: str) -> np.ndarray:
    """The array in the first file that is FILES[name]; UserError about `paths[0]` if none is."""
    problems = []
    for path in paths:
        try:
            return _read_idx(path, name)
        except UserError as error:
            problems.append(error)
    raise problems[0]


def _read_idx(path: pathlib.Path, name: str) -> np.ndarray:
    """The array in the IDX file `path`, plain or gzipped; UserError unless it is FILES[name]."""
    shape, expected = FILES[name]
    header = _header(shape)
    size = len(header) + math.prod(shape)
    content, problem = bytearray(), ""
    try:
        with path.open("rb") as file:
            gzipped = file.peek(len(_GZIP)).startswith(_GZIP)
            unpacked = gzip.GzipFile(fileobj=file) if gzipped else file
            # Stop one byte after the expected size: a damaged file may unpack to any size.
            while len(content) <= size and (part := unpacked.read1(min(1 << 20, size + 1))):
                content += part
    except (OSError, EOFError, zlib.error) as error:
        problem = f"can't be read ({error}); fetch it again"
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        there = "more" if len(content) > size else f"{len(content):,} with {found}"
        raise UserError(
            f"{path} {problem or _problem(content, shape, size)}; "
            f"expected {size:,} bytes with SHA-256 {expected}, found {there}"
        )
    return np.frombuffer(bytes(content), np.uint8, offset=len(header)).reshape(shape)


def _problem(content: bytearray, shape: tuple[int, ...], size: int) -> str:
    """What is wrong with a file whose first bytes, at most `size` + 1, are `content`.

    shape, size: of the expected array, and of the whole expected file in bytes.
    """
    choose, header = "choose a folder with MNIST's files", _header(shape)
    if content[: len(header)] == header[: len(content)]:
        if len(content) < size:
            return "was cut short; fetch it again"
        if len(content) > size:
            return "goes on where its header has it end; fetch it again"
        return (
            "is whole, but not MNIST's: altered, or of another data set, on which "
            f"--config.data.source=FOLDER trains; {choose}"
        )
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:2] != bytes(2) or len(content) < start or content[2] not in _BYTES:
        return f"is no IDX file; {choose}"
    found = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
    claimed = start + _BYTES[content[2]] * math.prod(found)
    if claimed == len(content) or size < min(claimed, len(content)):
        there, here = (" x ".join(f"{n:,}" for n in axes) for axes in (found, shape))
        kind = "" if content[2] == _UINT8 else f" of type {content[2]:#04x}"
        return f"is another data set's ({there}{kind}, not {here}); {choose}"
    return "does not hold what its header says; fetch it again"


def _read_cache(cache: pathlib.Path) -> list[np.ndarray] | None:
    """The four cached arrays; None if they are missing or, with a warning, damaged."""
    arrays = []
    for name, (_, expected) in FILES.items():
        path = cache / f"{name}.npy"
        array = files.read_array(path)
        if array is None or array.dtype != np.uint8 or _sha256(array) != expected:
            if path.exists():
                log.warning("%s is damaged or altered; it is written again", path)
            return None
        array.flags.writeable = False
        arrays.append(array)
    return arrays


def write_cache(
    cache: pathlib.Path, arrays: Mapping[str, np.ndarray], title: str = "MNIST"
) -> None:
    """Writes the cache; if that fails, only logs a warning."""
    try:
        for name, array in arrays.items():
            files.write_array(cache / f"{name}.npy", array)
    except OSError as error:
        log.warning("%s can't be cached in %s: %s", title, cache, error)
