"""Every picture is drawn whole, small, and of what it was given."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from digits_jax.data import recipes
from digits_jax.report import figures, results
from digits_jax.report.figures import comparisons, draw, runs
from digits_jax.report.figures.images import _mosaic

ONE = {"epoch": 1, "member": 0, "loss": 0.5, "accuracy": 0.9, "train_loss": 0.3,
       "train_accuracy": 0.95, "validation_loss": 0.4, "validation_accuracy": 0.93}  # fmt: skip


def pixels(path):
    """The picture as [H, W, 3] uint8; checks that it is small enough for a README."""
    assert 1_000 < path.stat().st_size < 200_000
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, the latest last; boxes are in pixels of their files."""
    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        savefig(figure, *args, **kwargs)
        figure.set_dpi(160)
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def has(picture, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((picture == rgb).all(-1).any())


def members(n, epochs, **change):
    return [ONE | {"epoch": e, "member": m, "loss": (1 + m) / e} | change
            for e in range(1, epochs + 1) for m in range(n)]  # fmt: skip


NAMES = recipes.class_names({"dataset": "mnist", "classes": ()})
PAIR = recipes.class_names({"dataset": "two_digit", "classes": ()})
NUMBERS = recipes.class_names({"dataset": "mnist100", "classes": ()})


@pytest.mark.parametrize(
    "rows",
    [
        [ONE],
        members(3, 7),
        members(2, 3, train_accuracy=1.0, train_loss=0.0),
        members(2, 3, validation_accuracy=None, loss=None),
        [{"epoch": 1, "member": 0, "loss": None, "accuracy": None}],
    ],
    ids=["one epoch", "population", "perfect", "gaps", "nothing"],
)
def test_curves_of(rows, tmp_path):
    figures.curves(rows, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").shape == (464, 1280, 3)


def test_curves_without_validation_have_no_gap(tmp_path):
    without = {key: x for key, x in ONE.items() if not key.startswith("validation")}
    figures.curves([ONE, ONE | {"epoch": 2}], tmp_path / "with.png")
    figures.curves([without, without | {"epoch": 2}], tmp_path / "without.png")
    both = pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png")
    assert [has(picture, draw.BLUE) for picture in both] == [True, True]
    assert [has(picture, draw.ORANGE) for picture in both] == [True, False]
    assert [has(picture, draw.TEAL) for picture in both] == [True, False]


def test_the_chosen_epoch_is_the_first_best():
    scores = [0.5, 0.9, 0.9, 0.7]
    rows = [ONE | {"epoch": e, "validation_accuracy": s} for e, s in enumerate(scores, 1)]
    rows += [ONE | {"member": 1, "validation_accuracy": None}]
    assert runs._chosen(rows) == {0: (0.9, 2)}


def test_series_takes_mean_and_range_over_the_members_still_there():
    rows = [{"epoch": 1, "x": 1.0}, {"epoch": 1, "x": 4.0}, {"epoch": 2, "x": 2.0}, {"epoch": 3}]
    series = draw.series(rows, "x", float)
    np.testing.assert_allclose(series, [[1, 2.5, 1, 4], [2, 2, 2, 2]])


def test_counts_put_truth_in_rows():
    counts = runs._counts(np.array([[0, 1, 1]]), np.array([[0, 2, 2]]), 3)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_confusion_of_one_and_of_two_heads(tmp_path):
    labels = np.arange(40) % 10
    wrong = np.where(labels == 4, 9, labels)
    figures.confusion({"digit": (labels, wrong)}, NAMES, tmp_path / "one.png")
    heads = {"upper": (labels, labels), "lower": (labels, wrong)}
    figures.confusion(heads, PAIR, tmp_path / "two.png")
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert two.shape[1] == 2 * one.shape[1]
    middle = one.shape[1]
    reddish = (two[..., 0].astype(int) - two[..., 2]) > 100
    assert reddish[:, middle:].any()
    assert not reddish[:, :middle].any()


def test_confusion_of_a_hundred_classes(tmp_path):
    labels = np.arange(300) % 100
    for name, predictions in {"none": labels, "some": np.where(labels == 49, 44, labels)}.items():
        path = tmp_path / f"{name}.png"
        figures.confusion({"number": (labels, predictions)}, NUMBERS, path)
        picture = pixels(path).astype(int)
        assert bool(((picture[..., 0] - picture[..., 2]) > 100).any()) == (name == "some")


def test_mosaic_places_images_row_by_row():
    images = np.arange(1, 4, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    mosaic = _mosaic(images, columns=2, gap=2, foot=1)
    assert mosaic.shape == (2 * (2 + 4 + 1), 2 * (3 + 2))
    np.testing.assert_array_equal(mosaic[2:4, 1:4], 1)
    np.testing.assert_array_equal(mosaic[2:4, 6:9], 2)
    np.testing.assert_array_equal(mosaic[9:11, 1:4], 3)
    assert mosaic.sum() == images.sum()


def test_errors_shows_the_surest_mistakes_first(tmp_path):
    images = np.zeros((50, 28, 28), np.uint8)
    images[30, 7:21, 7:21] = 255  # the surest mistake is a black square
    labels = np.zeros(50, int)
    probabilities = np.tile([0.4, 0.6], (50, 1))
    probabilities[30] = [0.1, 0.9]
    path = tmp_path / "errors.png"
    figures.errors(images, {"digit": (labels, probabilities)}, NAMES, path, count=20)
    picture = pixels(path)
    # The first cell: 48 pixels of title, then 4 screen pixels to an image pixel.
    cell = picture[48 + 8 : 48 + 8 + 112, 8 : 8 + 112]
    assert (cell[30:82, 30:82] < 8).all()
    assert (cell[:26] > 247).all()
    figures.errors(images, {"digit": (labels, probabilities[:, ::-1])}, NAMES, path)
    assert not (pixels(path) < 8).all(-1).any()  # no mistakes: no digit either


@pytest.mark.parametrize("shape", [(28, 56), (42, 28)])
def test_errors_of_pairs(shape, tmp_path):
    images = np.full((4, *shape), 200, np.uint8)
    right, wrong = np.eye(10)[[0, 1, 2, 3]], np.eye(10)[[5, 1, 7, 8]]
    heads = {"upper": (np.arange(4), right), "lower": (np.arange(4), wrong)}
    figures.errors(images, heads, PAIR, tmp_path / "errors.png")
    assert (pixels(tmp_path / "errors.png") == 55).all(-1).any()


def test_sheet_is_ink_on_paper(tmp_path):
    images = np.zeros((6, 28, 28), np.uint8)
    images[4] = 255
    figures.sheet(images, tmp_path / "sheet.png", columns=3)
    picture = pixels(tmp_path / "sheet.png")
    height, width, _ = picture.shape
    assert (picture[: height // 2] == 255).all()
    assert (picture[height * 3 // 4, width // 2] == 0).all()


def test_signed_maps_are_white_at_zero(tmp_path):
    """Each block has its own scale; a block of zeros is white."""
    maps = np.zeros((5, 4, 4))
    maps[1], maps[4] = 3, -3
    path = tmp_path / "maps.png"
    figures.signed_maps({"Conv_0": maps, "Conv_1": maps / 100}, path, "maps")
    picture = pixels(path)
    height, width, _ = picture.shape
    assert width == 1280
    for half in (picture[: height // 2], picture[height // 2 :]):
        assert has(half, draw.SIGNED[0])
        assert has(half, draw.SIGNED[-1])
        blue, orange = ((half == rgb).all(-1) for rgb in ((21, 62, 117), (122, 35, 8)))
        assert np.argwhere(orange)[:, 1].max() < np.argwhere(blue)[:, 1].min()
    figures.signed_maps({"nothing": 0 * maps}, path, "maps")
    assert not any(has(pixels(path), colour) for colour in (draw.SIGNED[0], draw.SIGNED[-1]))


@pytest.mark.parametrize(("n", "shape"), [(64, (28, 28)), (24, (14, 28)), (16, (42, 28))])
def test_signed_maps_fill_the_page(n, shape, tmp_path):
    """The last of the maps is still on it."""
    maps = np.zeros((n, *shape))
    maps[-1, -1, -1] = 1
    figures.signed_maps({"Dense_0": maps}, tmp_path / "maps.png", "filters")
    assert has(pixels(tmp_path / "maps.png"), draw.SIGNED[-1])


@pytest.mark.parametrize("shape", [(28, 28), (28, 56), (42, 28)])
def test_attribution_is_deepest_where_the_map_is_largest(shape, tmp_path):
    image = np.zeros(shape, np.uint8)
    image[:, : shape[1] // 2] = 255
    look = np.zeros(shape)
    look[-4:, -4:] = 7.0
    probabilities = np.eye(10)[3]
    heads = {
        "upper": (3, probabilities, {"saliency": look, "Grad-CAM": 0 * look}),
        "lower": (5, probabilities, {"saliency": 0 * look, "Grad-CAM": look}),
    }
    figures.attribution(image, heads, PAIR, tmp_path / "attribution.png", "Test example 0")
    picture = pixels(tmp_path / "attribution.png")
    rows, columns = np.nonzero((picture == (122, 35, 8)).all(-1))
    height, width, _ = picture.shape
    upper = rows < height / 2
    assert upper.any()
    assert (columns[upper] * 3 // width == 1).all()
    assert (~upper).any()
    assert (columns[~upper] * 3 // width == 2).all()
    assert has(picture, "#000000")  # the image itself, faded beside it
    assert has(picture, "#b3b3b3")


def test_ablation_has_a_point_for_each_accuracy_that_is_known(tmp_path):
    row = {"run": "one", "parameters": 7_600, "train": 0.999, "validation": 0.99, "test": None}
    row |= {"error": 0.001, "changed": "the first", "reading": "fits"}
    figures.ablation([row], tmp_path / "without.png")
    second = row | {"run": "two", "test": 0.985, "changed": "model.layers: a → b; " * 20}
    figures.ablation([row, second], tmp_path / "with.png")
    without, both = pixels(tmp_path / "without.png"), pixels(tmp_path / "with.png")
    assert both.shape[0] > without.shape[0] + 150  # room for the long text
    for picture in (without, both):
        assert has(picture, draw.BLUE)
        assert has(picture, draw.ORANGE)


def test_steps_of_the_frontier():
    """By hand: 20 is worse than 10, of two at 30 the better counts, 40 only repeats it."""
    points = [
        {"parameters": n, "mean": mean}
        for n, mean in [(30, 0.97), (10, 0.95), (40, 0.98), (20, 0.94), (30, 0.98), (50, 0.99)]
    ]
    assert comparisons.record_steps(points) == [(10, 0.95), (30, 0.98), (50, 0.99)]
    assert comparisons.record_steps([]) == []


RESULTS = Path(__file__).parents[1] / "results"


def test_frontier_covers_nothing_of_the_committed_runs(tmp_path, drawn):
    """By the boxes of what is drawn: markers, intervals, lines, names."""
    points = results.points(results.reported(results.read(RESULTS)))
    figures.frontier(points, tmp_path / "accuracy.png")
    (ax,) = drawn[-1].axes
    named = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert named.keys() >= {"compact", "fast", "mnist", "records-p690", "records-cnn"}
    assert len(named) == len(ax.texts)
    assert not any(a.overlaps(b) for a, b in combinations(named.values(), 2))

    at, marker = ax.transData.transform, 4 * 160 / 72
    lines = {"o": [], "D": [], "None": []}
    for line in ax.lines:
        if len(corners := at(line.get_xydata())):
            lines.setdefault(line.get_marker(), []).append(corners)
    means, quoted = np.concatenate(lines["o"]), np.concatenate(lines["D"])
    assert len(means) == len(points)
    assert len(quoted) == sum(bool(point["quoted"]) for point in points)
    assert all(np.abs(a - b).max() > marker for a, b in combinations(means, 2))

    boxes = [Bbox([xy - marker / 2, xy + marker / 2]) for xy in (*means, *quoted)]
    bars = [at(s) for c in ax.collections for s in c.get_segments()]
    assert len(bars) == len(points)
    for corners in (*bars, *lines["None"]):
        for (x, y), (right, end) in pairwise(corners):  # of a step: right, then up
            boxes += [
                Bbox([(x, y), (right, y)]),
                Bbox([(right, min(y, end)), (right, max(y, end))]),
            ]
    covered = [name for name, box in named.items() if box.count_overlaps(boxes)]
    assert covered == []
    assert draw.LOG in ax.get_xlabel()
    assert ax.get_ylabel() == draw.LOG_ERROR
