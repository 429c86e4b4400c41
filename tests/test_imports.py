"""The rooms have an order: a file imports only from its own room and from those before it."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (  # each imports from those before it, and from itself
    *("types", "errors", "files", "console", "defaults", "settings"),
    *("devices", "data", "models", "core", "scratch", "report", "training"),
    *("analysis", "export", "search", "api", "cli", "__main__"),
)


def room(name: str) -> str:
    """digits_jax.models.cnn lies in the room `models`."""
    return name.split(".")[1]


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "digits_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("digits_jax."):
            yield room(node.module)
        elif isinstance(node, ast.Import):
            yield from (room(a.name) for a in node.names if a.name.startswith("digits_jax."))


def test_imports_go_one_way():
    modules = sorted((ROOT / "digits_jax").rglob("*.py"))
    assert len(modules) > 20
    for path in modules:
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own == "__init__":  # it imports on first use, and for type checkers
            continue
        assert own in ROOMS, f"{path} has no place in the order"
        for other in imported(path):
            assert ROOMS.index(other) <= ROOMS.index(own), f"{path} imports {other}"


def test_nothing_but_launch_and_main_import_the_command_line():
    for folder in ("digits_jax", "configs", "benchmarks", "reliability"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "cli" not in imported(path) or path.name == "__main__.py", path


def test_configs_and_the_package_do_not_import_tests_or_launch():
    for path in [*(ROOT / "digits_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        names = {
            n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        }
        assert not any((name or "").split(".")[0] in ("tests", "launch") for name in names), path


def test_help_and_mistakes_do_not_wait_for_jax():
    code = (
        "import sys, launch; assert not {'jax', 'flax', 'orbax', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
