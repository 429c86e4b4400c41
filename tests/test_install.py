"""What an installed package needs: every folder of code and its files, one version, licence."""

import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import digits_jax
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_of_code_is_packed():
    folders = {path.parent for path in (ROOT / "digits_jax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    packed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert packed == names | {"digits_jax.configs", "digits_jax.results"}


def test_requirements_are_what_packaging_tools_can_read():
    files = sorted(ROOT.glob("requirements*.txt"))
    assert len(files) == 6  # and none leads to another one, which setuptools can't follow
    constrained = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    for path in files:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
        names = [re.match(r"[\w.-]+", line)[0] for line in filter(None, lines)]
        assert names, path
        assert set(names) <= constrained, path


def test_one_version_and_one_licence():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {digits_jax.__version__}\n" in citation
    assert f"## {digits_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "license: Apache-2.0" in citation
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_wheel_reads_a_digit_in_an_empty_folder(tmp_path):
    """Built without isolation, so without a network; .ci/run installs one for real."""
    pytest.importorskip("setuptools", "77")
    build = "from setuptools import build_meta as b; import sys; print(b.build_wheel(sys.argv[1]))"
    source = tmp_path / "source"  # setuptools writes into its own
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    made = subprocess.run(
        [sys.executable, "-c", build, tmp_path],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    wheel = tmp_path / made.stdout.split()[-1]
    assert wheel.stat().st_size < 2_000_000
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
        assert {name for name in top if not name.endswith(".dist-info")} == {"digits_jax"}
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = (
        "import digits_jax, numpy as np\n"
        "assert 'site' in digits_jax.__file__\n"
        "one = np.zeros((28, 28), np.uint8); one[5:23, 13:15] = 255\n"
        "print(digits_jax.load().predict(one).labels['digit'][0])\n"
        "print(digits_jax.get_config('lenet5:skip').name)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["1", "lenet5-skip"], run.stderr
