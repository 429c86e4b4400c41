"""Real pen strokes on the page to draw on, in a headless Chromium.

python -m reliability.drawings --page=results/demo/export/demo --strokes=pendigits_train.npz

The strokes are those of UCI's Pen-Based Recognition of Handwritten Digits (E. Alpaydin and F.
Alimoglu), 30 writers with a stylus: `points` [N, 2] with y up, `stroke_len`, `n_strokes`, `labels`.
All are read by the page's own code with random pen width, size, position and slant; some are drawn
with the mouse. Writes results/drawings.md. Needs `pip install playwright` and Chromium.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from digits_jax import files
from digits_jax.console import console, percent
from digits_jax.export.demo import site

Strokes = list[np.ndarray]  # [points, 2] each, y down
Result = dict[str, dict[str, Any]]

PAPER = 280  # pixels for each digit, as in page.js
PENS, SIZES, SLANT = (6, 40), (80, 230), 10.0  # px, px, degrees
EACH = 20  # drawings of every digit with the mouse
PATH = Path(__file__).parent.parent / "results" / "drawings.md"

INTRO = """# Real strokes on the page

Measured by `python -m reliability.drawings` in a headless Chromium on two CPU cores: digits of
UCI's Pen-Based Recognition of Handwritten Digits (30 writers, a stylus), each with a random size,
position, slant and pen width. None was trained on. But the kinds of drawn digits that the network
was trained on beside MNIST were chosen by looking at digits of this set that it misread, so its
accuracy for new writers will be a little lower.
"""

_PAGE = flags.DEFINE_string("page", "results/demo/export/demo", "An exported page.")
_STROKES = flags.DEFINE_string("strokes", None, "The .npz file of strokes.")

# Reads drawings as the page does: [[{width, points}, ...], ...] -> [text, ...].
READ = """async (drawings) => {
  const { reads } = await import("./page.js");
  const answers = [];
  for (const strokes of drawings) answers.push(await reads(strokes));
  return answers;
}"""


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; FileNotFoundError where none is installed."""
    from playwright.sync_api import sync_playwright

    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = next(filter(None, paths), None)
    if path is None:
        raise FileNotFoundError("there is no Chromium here")
    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves `folder`; yields its address."""
    with site.server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def ready(page: Any, address: str) -> None:
    """Opens the page and waits for its network."""
    page.goto(address)
    page.wait_for_function("performance.getEntriesByName('ready').length")


def draw(page: Any, strokes: Strokes) -> None:
    """Draws with the mouse; points in pixels of the paper."""
    box = page.locator("#paper").bounding_box()
    scale = min(box["width"], box["height"]) / PAPER
    for stroke in strokes:
        (x, y), *rest = (stroke * scale + (box["x"], box["y"])).tolist()
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in rest:
            page.mouse.move(x, y)
        page.mouse.up()


def answer(page: Any) -> str:
    """The page's answer, once it has read all strokes; its lines are joined by newlines."""
    page.wait_for_function("document.body.dataset.busy === '0'")
    lines = page.locator("#answer > div").all()
    return "\n".join("".join(line.locator("button").all_inner_texts()) for line in lines)


def placed(rng: np.random.Generator, strokes: Strokes, pen: float, left: float = 0) -> Strokes:
    """The strokes with random size, slant and position inside the square that begins at `left`."""
    slant = np.tan(np.deg2rad(rng.uniform(-SLANT, SLANT)))
    bent = [np.stack([x - slant * y, y], axis=1) for x, y in (stroke.T for stroke in strokes)]
    points = np.concatenate(bent)
    low, high = points.min(axis=0), points.max(axis=0)
    size = min(rng.uniform(*SIZES), PAPER - pen - 2)
    scale = size / max((high - low).max(), 1)
    room = PAPER - pen - 2 - (high - low) * scale
    corner = rng.uniform(0, 1, 2) * room + pen / 2 + 1 + [left, 0]
    return [(stroke - low) * scale + corner for stroke in bent]


def real(path: Path) -> tuple[list[Strokes], np.ndarray]:
    """Reads the .npz: digits as strokes, y down, and their labels [N]."""
    with np.load(path, allow_pickle=False) as data:
        lengths, counts = data["stroke_len"].astype(int), data["n_strokes"].astype(int)
        points, labels = data["points"] * [1, -1], data["labels"].astype(int)
    strokes = np.split(points, np.cumsum(lengths)[:-1])
    ends = np.cumsum(counts)
    return [strokes[end - n : end] for end, n in zip(ends, counts, strict=True)], labels


def all_of_them(page: Any, digits: list[Strokes], labels: np.ndarray) -> Result:
    """Every digit, and a third as many pairs, by the page's own code without the mouse."""
    rng = np.random.default_rng(0)

    def drawing(ids: list[int]) -> list[dict[str, Any]]:
        pen = int(rng.integers(PENS[0], PENS[1] + 1))
        lines = [
            stroke for k, i in enumerate(ids) for stroke in placed(rng, digits[i], pen, k * PAPER)
        ]
        return [{"width": pen, "points": line.round(1).tolist()} for line in lines]

    def right(pairs: list[list[int]]) -> np.ndarray:
        answers: list[str] = []
        for start in range(0, len(pairs), 250):
            answers += page.evaluate(READ, [drawing(ids) for ids in pairs[start : start + 250]])
        truth = ["".join(str(labels[i]) for i in ids) for ids in pairs]
        return np.array([a == b for a, b in zip(answers, truth, strict=True)])

    one = right([[i] for i in range(len(digits))])
    two = right(rng.integers(len(digits), size=(len(digits) // 3, 2)).tolist())
    of_each = [float(one[labels == label].mean()) for label in range(10)]
    return {
        "one digit": {"drawings": len(one), "right": float(one.mean()), "of each": of_each},
        "two digits": {"drawings": len(two), "right": float(two.mean())},
    }


def by_mouse(page: Any, digits: list[Strokes], labels: np.ndarray) -> Result:
    """EACH digits of every class, alone and as the first of two, drawn on the page."""
    rng = np.random.default_rng(1)
    result: Result = {}
    for count in (1, 2):
        right, took = [], []
        for label in np.repeat(np.arange(10), EACH).tolist():
            ids = [
                rng.choice(np.flatnonzero(labels == label)),
                *rng.integers(len(labels), size=count - 1),
            ]
            pen = int(rng.integers(PENS[0], PENS[1] + 1))
            page.fill("#pen", str(pen))
            if page.is_enabled("#clear"):
                page.click("#clear")
            page.evaluate("performance.clearMeasures()")
            for k, i in enumerate(ids):
                draw(page, placed(rng, digits[i], pen, k * PAPER))
            right.append(answer(page) == "".join(str(labels[i]) for i in ids))
            took += page.evaluate("performance.getEntriesByName('answer').map((e) => e.duration)")
        name = "one digit" if count == 1 else "two digits"
        result[name] = {"right": float(np.mean(right)), "drawings": len(right)}
        result[name] |= {
            "median, ms": float(np.median(took)),
            "99 %, ms": float(np.percentile(took, 99)),
        }
    return result


def table(opened: dict[str, float], mouse: Result, every: Result) -> str:
    """What was found, for people."""
    lines = [
        INTRO,
        "| | drawings | right | answered after, ms: median | 99 % |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name}, with the mouse | {row['drawings']} | {percent(row['right'])} | "
            f"{row['median, ms']:.0f} | {row['99 %, ms']:.0f} |"
            for name, row in mouse.items()
        ),
        *(
            f"| {name}, by the page's code | {row['drawings']:,} | {percent(row['right'])} | | |"
            for name, row in every.items()
        ),
        "",
        f"Of each digit, 0 to 9: {', '.join(map(percent, every['one digit']['of each']))}.",
        "",
        f"The paper can be drawn on {opened['drawable']:.0f} ms after the page is opened; "
        f"the network is there after {opened['ready']:.0f} ms.",
    ]
    return "\n".join(lines) + "\n"


def main(_: list[str]) -> None:
    digits, labels = real(Path(_STROKES.value or ""))
    with served(Path(_PAGE.value)) as address, browser() as opened:
        page = opened.new_page(viewport={"width": 1200, "height": 900})
        ready(page, address)
        marks = {
            name: page.evaluate("(name) => performance.getEntriesByName(name)[0].startTime", name)
            for name in ("drawable", "ready")
        }
        mouse = by_mouse(page, digits, labels)
        every = all_of_them(page, digits, labels)
    files.write_text(PATH, table(marks, mouse, every))
    console.print(PATH.read_text(encoding="utf-8"))


if __name__ == "__main__":
    flags.mark_flag_as_required("strokes")
    app.run(main)
