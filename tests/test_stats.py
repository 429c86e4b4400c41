"""Statistics by hand and by simulation."""

import numpy as np
import pytest

from digits_jax.report import stats


def test_half_width_by_hand():
    """Student's t of 2 degrees of freedom has 4.30265 at 97.5 %; s = 1, n = 3."""
    assert stats.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert stats.half_width([1.0]) is None


def test_mcnemar_by_hand():
    """1 against 5 of six coins: 2 (1 + 6) / 64."""
    first = np.array([1] * 1 + [0] * 5 + [1] * 7 + [0] * 2, bool)
    second = np.array([0] * 1 + [1] * 5 + [1] * 7 + [0] * 2, bool)
    assert stats.mcnemar(first, second) == (1, 5, pytest.approx(14 / 64))
    assert stats.mcnemar(first, first) == (0, 0, 1.0)


def test_the_temperature_is_what_scaled_the_logits():
    """Labels drawn from softmax(z): of 3 z as predictions the temperature is 3, over both heads."""
    rng = np.random.default_rng(0)
    log_p, labels = {}, {}
    for head, classes in (("upper", 4), ("lower", 7)):
        z = rng.normal(size=(20_000, classes))
        p = stats.tempered(z, 1.0)
        labels[head] = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
        log_p[head] = 3 * z
    assert stats.fit_temperature(log_p, labels) == pytest.approx(3, rel=0.05)
    np.testing.assert_allclose(
        stats.tempered(np.log([[0.2, 0.8]]), 0.5), [[0.04 / 0.68, 0.64 / 0.68]]
    )


def test_reliability_by_hand():
    """0.9 twice in one bin, once right; 0.5 once, right: (2 * 0.4 + 1 * 0.5) / 3."""
    bins = stats.reliability(np.array([0.9, 0.9, 0.5]), np.array([True, False, True]))
    assert bins.examples.sum() == 3
    assert bins.examples[13] == 2  # (13/15, 14/15]
    assert bins.accuracy[13] == 0.5
    assert np.isnan(bins.accuracy[0])
    assert bins.error == pytest.approx((2 * 0.4 + 0.5) / 3)
    edges = stats.reliability(np.array([1 / 15, 1.0]), np.array([True, True]))
    assert edges.examples[0] == edges.examples[14] == 1


def test_means_over_records_and_what_they_hold():
    records = [{"loss": 1.0, "heads": {"upper": 0.5}}, {"loss": 2.0, "heads": {"upper": 1.0}}]
    assert stats.means(records) == {"loss": 1.5, "heads": {"upper": 0.75}}
