"""Other public sets of 28x28 images: Fashion-MNIST, Kuzushiji-MNIST and EMNIST.

Xiao et al. 2017 (arXiv:1708.07747), Clanuwat et al. 2018 (arXiv:1812.01718), Cohen et al. 2017
(arXiv:1702.05373).
"""

import gzip
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from digits_jax import files
from digits_jax.console import console, status
from digits_jax.data import own, sources
from digits_jax.data.recipes import DIGITS
from digits_jax.errors import UserError

_LARGE = 100 * 2**20  # bytes: the size of such a download is said beforehand


class Named(NamedTuple):
    """A set. examples: of its two parts, how many; prefix: of its files' names; transposed: whether
    its images lie on their side.
    """

    title: str
    dataset: str  # of tensorflow-datasets
    classes: tuple[str, ...]
    examples: tuple[int, int] = (60_000, 10_000)
    prefix: str = ""
    transposed: bool = False


NAMED = {
    "fashion_mnist": Named(
        "Fashion-MNIST",
        "fashion_mnist",
        (
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
    "kmnist": Named(
        "Kuzushiji-MNIST",
        "kmnist",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "emnist/digits": Named(
        "EMNIST digits", "emnist", DIGITS, (240_000, 40_000), "emnist-digits-", transposed=True
    ),
    "emnist/balanced": Named(
        "EMNIST balanced",
        "emnist",
        (*DIGITS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abdefghnqrt"),
        (112_800, 18_800),
        "emnist-balanced-",
        transposed=True,
    ),
}
_KINDS = ("train-images", "train-labels", "test-images", "test-labels")


def load(name: str, raw_dir: str, cache_dir: pathlib.Path) -> own.LabelledSet:
    """The set NAMED[name]: from `raw_dir` if given, else from `cache_dir`, else downloaded.

    Images stand upright, bright on dark. Raises UserError where it can't be had.
    """
    known, cache = NAMED[name], cache_dir / name.replace("/", "-")
    if raw_dir:
        found = own.idx_files(sources.expanded("data.raw_dir", raw_dir), known.prefix)
        missing = [kind for kind in _KINDS if kind not in found]
        if missing:
            raise UserError(
                f"data.raw_dir={raw_dir}: there is no IDX file {known.prefix}{missing[0]} of "
                f"{known.title}"
            )
        arrays = [own.idx(found[kind]) for kind in _KINDS]
    else:
        stored = [files.read_array(cache / f"{kind}.npy") for kind in _KINDS]
        arrays = [array for array in stored if array is not None]
        if len(arrays) < len(_KINDS):
            arrays = _downloaded(known)
            sources.write_cache(cache, dict(zip(_KINDS, arrays, strict=True)), known.title)
    images, labels, test_images, test_labels = arrays
    shapes = [((n, 28, 28), (n,)) for n in known.examples]
    if [array.shape for array in arrays] != [shape for both in shapes for shape in both] or max(
        labels.max(), test_labels.max()
    ) >= len(known.classes):
        raise UserError(
            f"{f'data.raw_dir={raw_dir}' if raw_dir else cache} does not hold {known.title}, whose "
            "parts have {:,} and {:,} examples".format(*known.examples)
        )
    if known.transposed:
        images, test_images = images.swapaxes(1, 2), test_images.swapaxes(1, 2)
    made = own.of_arrays(
        images, labels, (test_images, test_labels), f"data.source={name}", range(len(known.classes))
    )
    return made._replace(classes=known.classes)


def _downloaded(known: Named) -> list[np.ndarray]:
    """The four arrays, by tensorflow-datasets, which checks the files' official checksums."""
    import tensorflow_datasets as tfds  # slow to import, and rarely needed

    folder = sources.expanded(
        "the environment's TFDS_DATA_DIR", f"{tfds.core.constants.DATA_DIR}/downloads"
    )
    infos = tfds.builder_cls(known.dataset).url_infos
    size = sum(info.size for info in infos.values())
    if size > _LARGE:
        console.print(f"{known.title} is part of a file of {size / 1e6:,.0f} MB, fetched once ...")
    status(f"fetching {known.title}", brief=size > _LARGE)
    try:
        with sources.quick_and_quiet():
            tfds.disable_progress_bar()
            manager = tfds.download.DownloadManager(
                download_dir=folder,
                dataset_name=known.dataset,
                url_infos=infos,
                force_checksums_validation=True,
            )
            paths = {url: pathlib.Path(manager.download(url)) for url in infos}
            return _arrays(known, paths)
    except Exception as error:  # requests', urllib3's, tfds' and the file system's
        raise UserError(
            f"{known.title} can't be downloaded to {folder} ({sources.reason(error)}). Connect to "
            "the internet once, or put its four IDX files in a folder and pass "
            "--config.data.raw_dir=DIR"
        ) from None


def _arrays(known: Named, paths: dict[str, pathlib.Path]) -> list[np.ndarray]:
    if not known.prefix:
        by_kind = {own.kind_of(url.rpartition("/")[2], ""): path for url, path in paths.items()}
        return [own.idx(by_kind[kind]) for kind in _KINDS]
    (path,) = paths.values()
    arrays = []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        members = {own.kind_of(name.rpartition("/")[2], known.prefix): name for name in names}
        for kind in _KINDS:
            with archive.open(members[kind]) as member, gzip.open(member) as file:
                arrays.append(own.idx_array(file))
    return arrays
