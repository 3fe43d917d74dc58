"""Nothing of ours can run code that came as data."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["benchmarks", "consumers", "deploy", "encoder", "lookup", "mindstream", "training"]
UNPICKLERS = {"_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Who opens what a release holds: after verification, or what it has just made itself.
OPENS = {
    "InferenceSession": {"benchmarks/encode.py", "encoder/mind_encoder.py", "training/export.py"},
    "np.load": {"encoder/release.py", "training/warm_start.py"},
}


def findings(source: str) -> Iterator[str]:
    """What in a module could unpickle."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in UNPICKLERS)
        yield from (name for name in names if name in {"torch.load", "numpy.load"})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            if called in {"torch.load", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle"}:
                yield called
            if called in {"np.load", "numpy.load"} and "allow_pickle=False" not in [
                ast.unparse(keyword) for keyword in node.keywords
            ]:
                yield f"{called} without allow_pickle=False"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_unpickles(package: str) -> None:
    """No import of pickle and its like, no torch.load, no np.load that would take objects."""
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for path in modules:
        assert list(findings(path.read_text())) == [], path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill as d",
        "from joblib import load",
        "from torch import load",
        "import torch\ntorch.load('f', weights_only=True)",
        "def f():\n    import shelve",
        "import numpy as np\nnp.load('f')",
        "import numpy as np\nnp.load('f', allow_pickle=True)",
    ],
)
def test_what_unpickles_would_be_found(source: str) -> None:
    """The check above sees through the ways that there are to write it."""
    assert list(findings(source))


def test_only_verified_files_are_opened() -> None:
    """Graphs and item tables are opened in the places that have verified them, or made them."""
    for opener, allowed in OPENS.items():
        found = {
            str(path.relative_to(ROOT))
            for package in PACKAGES
            for path in (ROOT / package).rglob("*.py")
            if any(
                isinstance(node, ast.Call) and ast.unparse(node.func).endswith(opener)
                for node in ast.walk(ast.parse(path.read_text()))
            )
        }
        assert found == allowed, opener
