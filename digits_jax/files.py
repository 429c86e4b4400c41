"""Files that are written whole or not at all, and arrays on disk that may be damaged."""

import json
import math
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

TEXT: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"}
PART = ".part"  # the end of a file's name while it is written


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """A file to write, "wb" or "w" (UTF-8), which becomes `path` once all is written.

    Until then it is a part file of this process beside `path`, which an error removes.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}{PART}")
    try:
        with part.open(mode, **({} if "b" in mode else TEXT)) as file:
            yield file
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text whole or not at all."""
    with replacing(path, "w") as file:
        file.write(text)


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes a .npy file whole or not at all, and its folder where that is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: str | os.PathLike) -> np.ndarray | None:
    """The array of a .npy file; None where it is missing, damaged or cannot be read."""
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # a damaged header can raise nearly anything
        return None


def plain(value: Any) -> Any:
    """`value` as JSON knows it: arrays as numbers and lists, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `plain(value)` as indented JSON, whole or not at all."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON, one a line."""
    return "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)


def append_rows(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Appends rows as JSON, one a line; a crash can leave the last one torn."""
    with open(path, "a", **TEXT) as file:
        file.write(json_lines(rows))
