"""Statistics on the host: intervals over seeds, tests over examples, calibration.

Log-probabilities are [N, C], labels [N] integers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

BINS = 15  # of equal width, for calibration


def half_width(values: Sequence[float] | np.ndarray) -> float | None:
    """Half of the 95 % interval of the mean, by Student's t over [n]; None of a single value."""
    n = len(values)
    if n < 2:
        return None
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def spread(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """`mean`, `std` (n-1; None of one) and `interval` (half of the 95 % interval of the mean)."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "interval": half_width(values),
    }


def means(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{key: its mean over the records}, of members or of draws; also in dicts that they hold."""
    return {
        key: means([record[key] for record in records])
        if isinstance(value, Mapping)
        else float(np.mean([record[key] for record in records]))
        for key, value in records[0].items()
    }


class McNemar(NamedTuple):
    """first, second: examples that only the one or only the other got right; p: two-sided."""

    first: int
    second: int
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test (1947) of two classifiers on the same examples; [N] bool, right or not.

    Of equally good classifiers, either is as likely to be the only one that is right.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p = float(stats.binomtest(only_first, n).pvalue) if n else 1.0
    return McNemar(only_first, only_second, p)


def tempered(log_p: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log_p / temperature), [..., C] float64."""
    return special.softmax(np.asarray(log_p, np.float64) / temperature, axis=-1)


def fit_temperature(log_p: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> float:
    """The temperature, 0.05 to 20, of highest likelihood of the labels; the heads share it.

    Guo et al. 2017, arXiv:1706.04599. log_p: {head: [N, C]}; labels: {head: [N]}.
    """

    def loss(log_temperature: float) -> float:
        total = 0.0
        for head, truth in labels.items():
            scaled = np.asarray(log_p[head], np.float64) / np.exp(log_temperature)
            picked = scaled[np.arange(len(truth)), truth]
            total += (special.logsumexp(scaled, axis=1) - picked).mean()
        return total

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


class Reliability(NamedTuple):
    """By bin of confidence, [BINS] each: number of examples, mean confidence, accuracy (or NaN)."""

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: |accuracy - confidence|, weighted by the examples."""
        used = self.examples > 0
        gaps = np.abs(self.accuracy - self.confidence)[used]
        return float((self.examples[used] * gaps).sum() / self.examples.sum())


def reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """confidence: [N] largest probabilities; right: [N] bool -> bins (0, 1/15], ... (14/15, 1]."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=w, minlength=BINS) / count for w in (confidence, right)]
    return Reliability(count, *means)
