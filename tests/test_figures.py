"""Every picture is drawn whole, small, and of what it was given."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from digits_jax.data import recipes
from digits_jax.report import figures, results, stats
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


def test_curves_of_a_pruned_run_are_per_fraction(tmp_path, drawn):
    shares = (0.0, 0.5, 0.9)
    rows = members(3, 4)
    for row in rows:
        row["validation_accuracy"] = 0.9 - 0.1 * row["member"]
    figures.curves(rows, tmp_path / "curves.png", "drawn digits", shares)
    loss, accuracy, gap = drawn[-1].axes
    for ax in (loss, accuracy):
        assert len({line.get_color() for line in ax.lines}) == len(ax.lines) == 3
    assert [line.get_ydata()[0] for line in accuracy.lines] == pytest.approx([10, 20, 30])
    assert [line.get_ydata()[0] for line in gap.lines[:3]] == pytest.approx([5, 15, 25])
    (legend,) = drawn[-1].legends
    assert [text.get_text() for text in legend.texts] == ["0 %", "50 %", "90 %"]
    said = " ".join(text.get_text() for text in drawn[-1].texts)
    assert "mean" not in said
    assert "drawn digits" in said


def test_axes_with_an_uneven_scale_say_so(tmp_path, drawn):
    path, rows = tmp_path / "x.png", members(2, 4)
    figures.curves(rows, path)
    figures.curves(rows, path, pruned=(0.5, 0.9))
    figures.learning({"one": rows}, path)
    figures.pruning([{"pruned": 0.5, "weights": n, "test": 0.9, "test_before": 0.8}
                     for n in (900, 3000)], path)  # fmt: skip
    figures.search([{"trial": n, "value": 0.9, "pruned": False, "rate": 10.0**-n}
                    for n in range(3)], ["rate"], {"rate"}, {"rate": 1.0}, path)  # fmt: skip
    levels = {"1": {"mean": 0.9, "std": 0.1}, "2": {"mean": 0.8, "std": 0.1}}
    found = {str(n): levels for n in range(6)}
    shown = {str(n): [np.zeros((28, 28), np.uint8)] * 2 for n in range(6)}
    figures.robustness(found, levels["1"], shown, path)
    assert len(drawn) == 6
    for figure in drawn:
        over = f"{figure.get_suptitle()} {figure.get_supylabel()}"
        scales = [(ax.get_xscale(), ax.get_xlabel()) for ax in figure.axes]
        assert all(draw.LOG in label for scale, label in scales if scale != "linear")
        scales = [(ax.get_yscale(), ax.get_ylabel()) for ax in figure.axes]
        assert "log" in {scale for scale, _ in scales}
        assert all(draw.LOG in f"{label} {over}" for scale, label in scales if scale != "linear")


@pytest.mark.parametrize("shape", [(28, 28), (28, 56), (42, 28)])
def test_damaged_digits_stand_above_their_levels(shape, tmp_path, drawn):
    """Whole, in proportion, one beside the other."""
    levels = {f"{n}": {"mean": 0.9, "std": None} for n in (1, 2, 3, 4)}
    shown = {str(n): [np.zeros(shape, np.uint8)] * 4 for n in range(6)}
    figures.robustness(dict.fromkeys(shown, levels), levels["1"], shown, tmp_path / "x.png")
    for strip, ax in zip(drawn[-1].axes[:3], drawn[-1].axes[3:6], strict=True):
        boxes = [image.get_window_extent() for image in strip.images]
        middles = [ax.transData.inverted().transform(((b.x0 + b.x1) / 2, 0))[0] for b in boxes]
        assert middles == pytest.approx([1, 2, 3, 4])
        assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)
        assert all(box.height <= strip.bbox.height + 0.1 for box in boxes)
        assert [b.width / b.height for b in boxes] == pytest.approx(
            [shape[1] / shape[0]] * 4, rel=0.01
        )
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_the_last_tick_of_clipped_values_says_so(tmp_path, drawn):
    rows = members(1, 4, validation_accuracy=1.0, train_loss=0.0)
    figures.curves(rows, tmp_path / "curves.png")
    loss, accuracy, _ = drawn[-1].axes
    assert loss.get_yticklabels()[0].get_text() == "≤0.0001"
    assert accuracy.get_yticklabels()[0].get_text() == "≥99.99"


def diagram(*bins):
    """(examples, confidence, accuracy) of each bin."""
    return stats.Reliability(*map(np.array, zip(*bins, strict=True)))


def test_calibration_has_one_unit_and_its_legend_beside_the_curves(tmp_path, drawn):
    bins = diagram((5, 0.1, 0.0), (19, 0.3, 0.6), (20, 0.6, 0.5), (0, 0, np.nan), (900, 0.9, 0.95))
    diagrams = {"members": (bins, bins), "ensemble": (bins, bins)}
    figures.reliability(diagrams, tmp_path / "calibration.png", "drawn digits")
    figure = drawn[-1]
    assert figure.get_suptitle() == "drawn digits"
    for ax in figure.axes:
        unit = np.diff(ax.transData.transform([(0, 0), (1, 1)]), axis=0)[0]
        assert unit[0] == pytest.approx(unit[1])
        assert ax.get_legend().get_window_extent().y0 >= ax.bbox.y1 - 1
        assert "drawn" not in ax.get_title(loc="left")
        for points in ax.collections:
            np.testing.assert_allclose(
                points.get_offsets(), [[10, 0], [30, 60], [60, 50], [90, 95]]
            )
            faint = np.asarray(points.get_alpha()) < 0.5
            np.testing.assert_array_equal(faint, [True, True, False, False])
        lines = {round(line.get_xdata()[1]): line for line in ax.lines if len(line.get_xdata())}
        assert lines[60].get_alpha() < 0.5
        assert lines[90].get_alpha() == 1


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


CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]  # fmt: skip


def overlaps(texts):
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize(
    "names",
    [CLOTHES, [chr(65 + i) for i in range(26)], [f"kind {i}" for i in range(60)], ["$\\a"] * 21],
    ids=["ten", "letters", "sixty", "not mathematics"],
)
def test_confusion_names_every_class(names, tmp_path, drawn):
    labels = np.arange(600) % len(names)
    wrong = np.where(np.arange(600) % 7 == 0, (labels + 3) % len(names), labels)
    figures.confusion({"class": (labels, wrong)}, {"class": names}, tmp_path / "x.png", "clothes")
    figure = drawn[-1]
    ax = figure.axes[0]
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == names
        assert overlaps(ticks) == []
        page = figure.bbox
        for box in (tick.get_window_extent() for tick in ticks):
            assert 0 <= box.x0 < box.x1 <= page.x1
            assert 0 <= box.y0 < box.y1 <= page.y1
    assert bool(ax.texts) == (len(names) <= 20)  # the counts
    titles = [a.get_title(loc="left") for a in figure.axes]
    assert [text for text in (figure.get_suptitle(), *titles) if "clothes" in text] == ["clothes"]
    if len(figure.axes) > 1:
        assert overlaps([*figure.axes[1].get_yticklabels(), *ax.get_yticklabels()]) == []


def test_confusion_has_the_heads_in_the_order_of_the_classes(tmp_path, drawn):
    labels = np.arange(40) % 10
    heads = {"lower": (labels, labels), "upper": (labels, labels)}
    figures.confusion(heads, PAIR, tmp_path / "x.png")
    titles = [ax.get_title(loc="left").split(":")[0] for ax in drawn[-1].axes]
    assert titles == ["upper", "lower"]


def test_shortened_fits():
    """A point is 1/72 inch: 40 letters of about half of 8 points are about 2 inches wide."""
    assert draw.shortened("T-shirt/top", 1) == "T-shirt/top"
    text = draw.shortened("n" * 40, 1)
    assert text == f"{'n' * (len(text) - 1)}…"
    assert 11 < len(text) < 20
    assert draw.shortened("n" * 40, 1, size=16).count("n") < text.count("n") < 20
    assert draw.shortened("nnn", 0) == "…"


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


@pytest.mark.parametrize("shape", [(28, 28), (28, 56), (42, 28)])
@pytest.mark.parametrize("names", [CLOTHES, [f"the class number {i}" for i in range(10)]])
def test_errors_of_long_names_fit(names, shape, tmp_path, drawn):
    images, labels = np.full((40, *shape), 200, np.uint8), np.arange(40) % 10
    pairs = {"lower": (labels, np.eye(10)[(labels + 1) % 10])}
    if shape == (42, 28):
        pairs["upper"] = (labels, np.eye(10)[(labels + 3) % 10])
    figures.errors(images, pairs, dict.fromkeys(pairs, names), tmp_path / "errors.png")
    (ax,) = drawn[-1].axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("true → read, confidence") == 1
    assert overlaps(ax.texts) == []
    assert all(text.get_window_extent().x1 <= drawn[-1].bbox.x1 for text in ax.texts)
    assert all(text.get_window_extent().y0 >= 0 for text in ax.texts)
    assert sum(text.endswith(names[0][:5]) or names[0][:5] in text for text in texts) >= 8


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
    figures.sheet(images, tmp_path / "sheet.png", 3, "digits")
    picture = pixels(tmp_path / "sheet.png")[48:]  # below the title
    height, width, _ = picture.shape
    assert (picture[: height // 2] == 255).all()
    assert (picture[height * 3 // 4, width // 2] == 0).all()


def test_pairs_of_a_sheet_are_apart(tmp_path):
    """More paper between two pairs than between the digits of a pair, which have margins of 4."""
    digits = np.pad(np.full((12, 20, 20), 255, np.uint8), ((0, 0), (4, 4), (4, 4)))
    figures.sheet(np.tile(digits, (1, 1, 2)), tmp_path / "sheet.png", 4, "pairs")
    row = (pixels(tmp_path / "sheet.png")[80] == 0).all(-1)
    starts, ends = np.flatnonzero(~row[:-1] & row[1:]), np.flatnonzero(row[:-1] & ~row[1:])
    paper = starts[1:] - ends[:-1]
    assert len(starts) == 8
    assert paper[1::2].min() > 2 * paper[::2].max()


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
def test_attribution_is_deepest_where_the_map_is_largest(shape, tmp_path, drawn):
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
    picture, scale = np.split(pixels(tmp_path / "attribution.png"), [-40])
    assert has(scale, draw.HEAT[-1])
    assert any("influence on the predicted class" in t.get_text() for t in drawn[-1].axes[0].texts)
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
