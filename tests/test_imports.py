"""The house has an order: a file imports only from files above it."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = (
    *("errors", "types", "mesh", "layers", "models"),
    *("data.mnist", "data.pairs", "data.builders", "data.drawn", "augment", "data.batches"),
    *("losses", "metrics", "optim", "step", "population", "scratch", "engine", "devices"),
    "checkpoint",
    *(
        "stats",
        "figures",
        "report",
        "results",
        "console",
        "signals",
        "hosts",
        "settings",
        "trained",
        "lessons",
        "pruning",
    ),
    *("run", "train", "user_images"),
    *("evaluate", "robustness", "onnx_graph", "demo"),
    *("describe", "explain", "export", "compare", "study", "search"),
)


def room(name: str) -> str:
    """digits_jax.models.cnn lives in the room `models`; digits_jax.data.mnist is one of its own."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["data"] and len(parts) > 1 else parts[0]


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("digits_jax"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = node.module in ("digits_jax", "digits_jax.data")
                yield room(whole if known else node.module)
        elif isinstance(node, ast.Import):
            yield from (room(a.name) for a in node.names if a.name.startswith("digits_jax."))


def test_imports_go_one_way():
    modules = sorted((ROOT / "digits_jax").rglob("*.py"))
    assert len(modules) > 20
    for path in modules:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__" and parts[1] != "models":
            assert not list(imported(path))
            continue
        own = room(".".join(parts))
        assert own in ORDER, f"{path} has no place in the order"
        for other in imported(path):
            if not (other == own and own in ("models", "scratch")):
                assert ORDER.index(other) < ORDER.index(own), f"{own} imports {other}"


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
