"""Files are whole or not there; a damaged array is None."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits_jax import files
from digits_jax.training import workdir


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "text.md"
    files.write_text(path, "eins\nzwei ±\n")
    assert path.read_bytes() == "eins\nzwei ±\n".encode()

    def stopped():
        with files.replacing(path, "w") as file:
            file.write("half")
            assert path.read_text(encoding="utf-8").startswith("eins")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text(encoding="utf-8") == "eins\nzwei ±\n"
    assert list(tmp_path.iterdir()) == [path]  # no part is left


def test_an_error_of_the_folder_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        files.write_text(tmp_path / "none" / "text.md", "")


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "cut", "header", "pickle", "zip"])
def test_a_damaged_array_is_none(tmp_path, damage):
    path, array = tmp_path / "new" / "array.npy", np.arange(6, dtype=np.uint8).reshape(2, 3)
    files.write_array(path, array)
    np.testing.assert_array_equal(files.read_array(path), array)
    whole = path.read_bytes()
    match damage:
        case "missing" | "folder":
            path.unlink()
            if damage == "folder":
                path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-1])
        case "header":
            path.write_bytes(whole[:12] + b"(((" + whole[15:])
        case "pickle":
            np.save(path, np.array([{}], object))
        case "zip":
            with path.open("wb") as file:
                np.savez(file, array=array)
    assert files.read_array(path) is None


def test_what_a_killed_write_left_is_deleted_with_a_run(tmp_path):
    """The process ends within a write; the next run in the folder deletes what is left of it."""
    program = (
        "import os; from digits_jax import files\n"
        f"with files.replacing({str(tmp_path / 'summary.json')!r}) as file:\n"
        "    file.write(b'half'); file.flush(); os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=False)
    (part,) = tmp_path.iterdir()
    assert part.read_bytes() == b"half"
    mine = tmp_path / "notes.md.part"  # the user's own
    mine.touch()
    workdir.clear(tmp_path, ["model.npz"])
    assert part.exists()
    workdir.clear(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]
