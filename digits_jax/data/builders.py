"""The recipes as tensorflow-datasets, for use outside of this package. Needs no TensorFlow.

    import tensorflow_datasets as tfds
    import digits_jax.data.builders  # registers 'mnist100' and 'two_digit'

    data = tfds.data_source("mnist100", builder_kwargs={"file_format": "array_record"})
    data["train"][0]  # {"image": [28, 56] uint8, "number": 0 to 99}

They have no validation split and are drawn with `data.seed=0`. MNIST itself is downloaded, or read
from a folder: `builder_kwargs={"raw_dir": "DIR"}`. Training does not use them: it draws its pairs
in memory.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from digits_jax.data import recipes, sources
from digits_jax.errors import UserError
from digits_jax.types import Digits

if importlib.util.find_spec("array_record") is None:
    raise UserError("digits_jax.data.builders needs the package array_record, which is Linux-only")

Example = tuple[int, dict[str, np.ndarray]]  # a key, and the features


class _Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The recipe of `recipes.RECIPES` with the dataset's name."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, raw_dir: str = "", file_format: str = "array_record", **kwargs: Any
    ) -> None:
        """raw_dir: the folder with MNIST's four files; without one they are downloaded."""
        self._raw_dir = raw_dir
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        recipe, types = recipes.RECIPES[self.name], tfds.features
        features = {"image": types.Tensor(shape=recipe.shape, dtype=np.uint8, encoding="bytes")}
        features |= {h: types.ClassLabel(num_classes=n) for h, n in recipe.heads.items()}
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=types.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[Example]]:
        arrays = sources.read(self._raw_dir) if self._raw_dir else sources.download(dl_manager)
        recipe = recipes.RECIPES[self.name]
        return {
            "train": self._generate_examples("train", Digits(*arrays[:2]), recipe.train),
            "test": self._generate_examples("test", Digits(*arrays[2:]), recipe.test),
        }

    def _generate_examples(self, split: str, digits: Digits, n: int) -> Iterator[Example]:
        recipe, rng = recipes.RECIPES[self.name], recipes.generator(0, split)
        draws = recipes.draw_pairs(rng, n, len(digits.labels), recipe.digits)
        images = np.asarray(recipe.compose(digits.images[draws]))
        labels = {head: np.asarray(x) for head, x in recipe.label(digits.labels[draws]).items()}
        for i, image in enumerate(images):
            yield i, {"image": image} | {head: x[i] for head, x in labels.items()}


class Mnist100(_Pairs):
    """Two MNIST digits side by side, 28x56: number = 10 x left + right, 100 classes.

    60,000 pairs of MNIST's training digits and 10,000 of its test digits, both sides drawn
    independently, uniformly and with replacement.
    """


class TwoDigit(_Pairs):
    """Two MNIST digits one above the other, 42x28, and a label of each: upper and lower.

    Upper digit in rows 0-27, lower digit in rows 14-41, pixelwise maximum where they overlap.
    40,000 pairs of MNIST's training digits and 4,000 of its test digits, both drawn independently,
    uniformly and with replacement.
    """
