"""--mode=read and `run.read`: numbers of any length in pictures of any kind."""

import csv
import io
import types

import numpy as np
import pytest
from conftest import config_of
from matplotlib.image import imread
from PIL import Image

import digits_jax
from digits_jax import UserError
from digits_jax.analysis import read as reading
from digits_jax.data import drawn, pictures
from digits_jax.data.ink import Piece
from digits_jax.data.recipes import RECIPES
from digits_jax.report import figures
from digits_jax.training import reader
from digits_jax.training.predictor import Predictor

pytestmark = pytest.mark.usefixtures("unpictured")

PAPER, INK = 200, 60


@pytest.fixture(scope="module")
def run():
    return digits_jax.load()


@pytest.fixture(scope="module")
def digits(run):
    """{digit: [28, 28] uint8}: of each the one that the reader is most certain of."""
    images, labels = drawn.digits(7, 400)
    p = run.predict(images).probabilities["digit"]
    return {d: images[np.argmax(p[:, d] * (labels == d))] for d in range(10)}


def page(digits, *lines, scale=4):
    """Numbers in grey ink on grey paper: [h, w] uint8; a digit's box is 28 * scale px wide."""
    width = max(map(len, lines))
    rows = [
        np.concatenate([digits[int(c)] for c in line.ljust(width)], axis=1)
        if len(line) == width
        else np.pad(
            np.concatenate([digits[int(c)] for c in line], axis=1),
            ((0, 0), (0, 28 * (width - len(line)))),
        )
        for line in lines
    ]
    ink = Image.fromarray(np.pad(np.concatenate(rows), 14)).resize(
        ((28 * width + 28) * scale, (28 * len(lines) + 28) * scale), Image.Resampling.BILINEAR
    )
    return np.rint(PAPER + (INK - PAPER) * (np.asarray(ink) / 255.0)).astype(np.uint8)


@pytest.fixture
def album(digits, tmp_path):
    """Pictures, their names and what stands in them."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a_2026.jpg", "b_7.png", "c_99.webp"):
        number = name.partition("_")[2].partition(".")[0]
        Image.fromarray(page(digits, number)).save(folder / name)
    return folder


def rows_of(folder):
    with (folder / "readings.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_number_and_where_its_digits_are(run, digits):
    found = run.read(page(digits, "2026"))
    assert isinstance(found, digits_jax.Reading)
    assert (found.text, str(found), found.left_out) == ("2026", "2026", 0)
    assert [digit.character for digit in found.digits] == list("2026")
    for i, digit in enumerate(found.digits):
        assert 0.5 < digit.probability <= 1
        assert (digit.image.shape, digit.image.dtype) == ((28, 56), np.uint8)
        left, top, right, bottom = digit.box
        assert 56 + 112 * i <= left < right <= 56 + 112 * (i + 1)
        assert 56 <= top < bottom <= 56 + 112
        assert bottom - top > 60


def test_lines_and_blank_pictures(run, digits):
    assert run.read(page(digits, "314", "15")).text == "314\n15"
    assert run.read(np.full((90, 120), 255, np.uint8)) == reader.Reading("", [])


def test_every_form_of_a_picture(run, digits, tmp_path):
    grey = page(digits, "47")
    Image.fromarray(grey).save(tmp_path / "x.png")
    colours = np.stack([grey] * 3, axis=2)
    expected = run.read(grey)
    assert expected.text == "47"
    for given in (
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        (tmp_path / "x.png").read_bytes(),
        Image.fromarray(grey),
        grey / 255,
        colours,
        colours / np.float32(255),
    ):
        found = run.read(given)
        assert found.text == "47"
        assert [d.box for d in found.digits] == [d.box for d in expected.digits]
    assert run.read(255 - grey, ink="bright").text == "47"
    with pytest.raises(UserError, match="ink: there is no 'blue'"):
        run.read(grey, ink="blue")
    with pytest.raises(UserError, match="no file that could be opened"):
        run.read(tmp_path / "absent.png")


def test_boxes_are_in_pixels_of_the_picture_as_it_was(run, digits):
    small, large = (run.read(page(digits, "47", scale=scale)) for scale in (4, 40))
    assert large.text == "47"  # 3,360 px wide, so it was reduced
    for one, other in zip(small.digits, large.digits, strict=True):
        np.testing.assert_allclose(10 * np.array(one.box), other.box, atol=25)


def test_a_turned_jpeg_is_read_upright(run, digits, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(page(digits, "2026").T[::-1]).save(tmp_path / "x.jpg", exif=exif, quality=90)
    found = run.read(tmp_path / "x.jpg")
    assert found.text == "2026"
    assert found.digits[3].box[0] > 380  # of 560 px


def test_a_run_of_pairs_reads_no_numbers():
    pair = types.SimpleNamespace(recipe=RECIPES["mnist100"], config=config_of("mnist100"))
    with pytest.raises(UserError, match=r"mnist100 reads 2 digits at once.*run of single digits"):
        reader.Reader(pair)


def test_of_very_many_pieces_some_hundred_are_read(run, digits):
    piece = Piece((0, 0, 20, 20), digits[7])
    found = reader.Reader(run._run).read([[piece] * 200, [piece] * 250, [piece]])
    assert len(found.digits) == reader.MOST_PIECES == 300
    assert found.text == "7" * 200 + "\n" + "7" * 100
    assert found.left_out == 151
    assert reading._left_out(found) == "451 pieces of ink, of which the first 300 are read"


def test_a_picture_a_line(album, tmp_path, capsys):
    out = tmp_path / "out"
    reading.read(None, None, str(album), "auto", out)
    said = capsys.readouterr().out.splitlines()
    for line, (name, text) in zip(
        said[:3], (("a_2026.jpg", "2026"), ("b_7.png", "7"), ("c_99.webp", "99")), strict=True
    ):
        assert line.startswith(f"{name}  {text}  ")
        assert line.count(" %") == len(text)
    assert said[3:] == [f"3 pictures read; readings.csv and reading.png are in {out}"]
    rows = rows_of(out)
    assert [list(row) for row in rows] == [["file", "text", "probabilities", "boxes"]] * 3
    assert [row["text"] for row in rows] == ["2026", "7", "99"]
    for row in rows:
        assert len(row["probabilities"].split()) == len(row["text"])
        boxes = [[*map(int, box.split())] for box in row["boxes"].split("; ")]
        assert np.shape(boxes) == (len(row["text"]), 4)
    assert (out / "reading.png").exists()


def test_several_lines_nothing_and_what_is_no_picture(digits, tmp_path, capsys):
    Image.fromarray(page(digits, "314", "15")).save(tmp_path / "1.png")
    Image.new("L", (90, 60), 255).save(tmp_path / "2.png")
    (tmp_path / "3.txt").write_text("no picture")
    frames = [Image.fromarray(page(digits, number)) for number in "12"]
    frames[0].save(tmp_path / "4.gif", save_all=True, append_images=frames[1:])
    reading.read(None, None, str(tmp_path), "auto", tmp_path / "out")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1.png  314 / 15  ")
    assert said[1] == "2.png  no ink found"
    assert said[2].startswith("3.txt  not read: not a picture of a kind that is read")
    assert said[3].startswith("4.gif  1  ")
    assert said[4] == "4.gif: an animation, of which the first frame is read"
    assert said[5].startswith("3 pictures read, 1 not; ")
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["314 / 15", "", "1"]


def test_labels_in_names(album, digits, tmp_path, capsys):
    (album / "d_12.png").write_bytes((album / "b_7.png").read_bytes())
    for name in ("e_x.png", "f.png"):
        (album / name).write_bytes((album / "b_7.png").read_bytes())
    reading.read(None, None, str(album), "auto", tmp_path / "out", "name")
    said = capsys.readouterr().out.splitlines()
    assert "e_x.png: its label 'x' is not made of 0 1 2 3 4 5 6 7 8 9; it doesn't count" in said
    none = "there is no label after an underscore in its name"
    assert f"f.png: {none}; it doesn't count" in said
    assert said[-3:-1] == ["d_12.png: read 7, true 12", "3 of 4 right, 75.00 %; readings.csv"]
    rows = rows_of(tmp_path / "out")
    assert [(row["label"], row["right"]) for row in rows] == [
        *(("2026", "1"), ("7", "1"), ("99", "1"), ("12", "0"), ("", ""), ("", "")),
    ]


def test_labels_of_folders(digits, tmp_path, capsys):
    for name in ("2026/x.png", "7/x.png", "7/y_9.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(page(digits, name.partition("/")[0])).save(tmp_path / "data" / name)
    reading.read(None, None, str(tmp_path / "data"), "auto", tmp_path / "out", "folder")
    said = capsys.readouterr().out
    assert "2026/x.png  2026  " in said
    assert "3 of 3 right, 100.00 %" in said


def test_a_picture_shows_mistakes_first_and_twelve_pictures_at_most(
    digits, tmp_path, monkeypatch, capsys
):
    data, seven = tmp_path / "data", Image.fromarray(page(digits, "7"))
    data.mkdir()
    for i in range(20):
        seven.save(data / f"{i:02}_{1 if i in (13, 17) else 7}.png")
    shown = []
    monkeypatch.setattr(figures, "readings", lambda given, path: shown.extend(given))
    reading.read(None, None, str(data), "auto", tmp_path / "out", "name")
    names = [each.title.partition(":")[0] for each in shown]
    assert names == ["13_1.png", "17_1.png", *(f"{i:02}_7.png" for i in range(10))]
    assert [each.title for each in shown[:3]] == [
        "13_1.png: 1 → 7",
        "17_1.png: 1 → 7",
        "00_7.png: 7",
    ]
    assert [each.wrong for each in shown[:3]] == [True, True, False]
    (part,) = shown[0].parts
    assert part.text.startswith("7 ")
    left, top, right, bottom = part.box
    ink = shown[0].pixels[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
    assert 0 < (shown[0].pixels < 130).sum() == (ink < 130).sum()


@pytest.mark.usefixtures("pictured")
@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_picture_of_readings(digits, tmp_path, count):
    piece = figures.Part(np.array([56.0, 56, 168, 168]), digits[7], "7 100 %")
    one = figures.Shown(np.stack([page(digits, "7")] * 3, axis=2), "7.png: 7", False, [piece])
    shown = [one, one._replace(parts=[piece] * 300, wrong=True), one._replace(parts=[])]
    figures.readings((shown * 4)[:count], tmp_path / "x.png")
    height, width = imread(tmp_path / "x.png").shape[:2]
    assert width == 1280
    assert 300 < height < 2600


def test_an_interrupt_keeps_what_was_read(album, tmp_path, monkeypatch, capsys):
    opened, left = pictures.opened, [1, 2]

    def interrupted(path):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return opened(path)

    monkeypatch.setattr(pictures, "opened", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reading.read(None, None, str(album), "auto", tmp_path / "out")
    assert [row["file"] for row in rows_of(tmp_path / "out")] == ["a_2026.jpg", "b_7.png"]
    assert "2 pictures read; readings.csv" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # at the first one
        reading.read(None, None, str(album), "auto", tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_where_it_writes_and_which_run_reads(album, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    reading.read(None, None, "album/*.png", "auto")
    assert [row["text"] for row in rows_of(tmp_path / "runs" / "read")] == ["7"]
    opened = []

    def open_run(config, workdir):
        opened.append((config, workdir))
        return Predictor(reader.shipped())

    monkeypatch.setattr(reading, "open_run", open_run)
    (tmp_path / "run").mkdir()
    reading.read(run.config, "run", "album", "auto")
    assert opened == [(run.config, "run")]
    assert len(rows_of(tmp_path / "run")) == 3


def test_standard_input(album, tmp_path, monkeypatch, capsys):
    data = (album / "a_2026.jpg").read_bytes()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    reading.read(None, None, "-", "auto", tmp_path / "out")
    assert capsys.readouterr().out.startswith("standard input  2026  ")


def test_what_can_not_be_read_at_all(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    for data, labels, said in (
        (None, None, "--mode=read needs --data"),
        ("x.png", "nam", "--labels: there is no 'nam'"),
        ("x.png", None, r"x\.png: not a picture"),
        ("absent.png", None, "there is no such file or folder"),
        (".", None, "no picture that could be read"),
    ):
        given = data and str(tmp_path / data)
        with pytest.raises(UserError, match=said):
            reading.read(None, None, given, "auto", tmp_path / "out", labels)
    with pytest.raises(UserError, match="--ink: there is no 'blue'"):
        reading.read(None, None, str(tmp_path / "x.png"), "blue", tmp_path / "out")


def test_the_command(command, album, tmp_path):
    out = tmp_path / "out"
    code, said, error = command(
        "--mode=read", f"--data={album}/*_2026.jpg", f"--out={out}", "--labels=name"
    )
    assert (code, error) == (0, "")
    assert "a_2026.jpg  2026  " in said
    assert "1 of 1 right, 100.00 %" in said
    assert imread(out / "reading.png").shape[1] == 1280
    code, _, error = command("--mode=read")
    assert (code, error) == (
        1,
        "error: --mode=read needs --data: a picture, a folder of them, or 'photos/*.jpg'",
    )


def log_of(*rows):
    return np.log(np.asarray(rows) + 1e-12)


CLASSES = {"first": ["0", "1", "?"], "second": ["0", "1", "?", ""]}


def test_symbols_of_heads():
    log_p = {
        "first": log_of([0.1, 0.9, 0], [0.8, 0.1, 0.1], [0.1, 0, 0.9], [0.5, 0.3, 0.2]),
        "second": log_of([0, 0, 0, 1], [0.7, 0.1, 0.1, 0.1], [0, 0, 0, 1], [0.1, 0, 0, 0.9]),
    }

    def said(threshold):
        read = reader.symbols(log_p, 1.0, CLASSES, threshold)
        return [[(name, round(p, 3)) for name, p in each] for each in read]

    assert said(0.0) == [[("1", 0.9)], [("0", 0.8), ("0", 0.7)], [("0", 0.1)], [("0", 0.5)]]
    assert said(0.5) == [[("1", 0.9)], [("0", 0.8), ("0", 0.7)], [("?", 0.9)], [("0", 0.5)]]
    assert said(0.85)[3] == [("?", 0.2)]


def test_the_threshold_refuses_a_share_of_single_digits_alone(monkeypatch):
    monkeypatch.setattr(reader, "REFUSALS", 0.2)
    sure = np.linspace(0.5, 0.95, 10)  # of ten single digits; then a pair, and what is no digit
    first = np.stack([sure, 0 * sure, 1 - sure], axis=1).tolist()
    log_p = {
        "first": log_of(*first, [0.4, 0.3, 0.3], [0.2, 0.2, 0.6]),
        "second": log_of(*[[0, 0, 0, 1.0]] * 10, [0.4, 0.3, 0.2, 0.1], [0, 0, 0, 1.0]),
    }
    labels = {"first": np.array([0] * 11 + [2]), "second": np.array([3] * 10 + [0, 3])}
    found = reader.threshold(labels, log_p, 1.0, CLASSES)
    assert found == pytest.approx(0.6)
    read = reader.symbols(log_p, 1.0, CLASSES, found)
    assert sum(each[0][0] == "?" for each in read[:10]) == 2
