"""Imports point one way, and serving does without what only training needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "encoder": set(),
    "consumers": {"encoder"},
    "training": {"encoder"},
    "lookup": {"encoder"},
    "deploy": set(),
}
OURS = {*MAY_IMPORT, "mindstream", "tests", "benchmarks"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & OURS


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    """Encoder knows neither neighbour; nobody imports the command line."""
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) <= {package} | MAY_IMPORT[package], path


@pytest.mark.parametrize(
    "module",
    ["consumers.worker", "lookup", "mindstream.cli", "mindstream.monitor", "encoder.mind_encoder"],
)
def test_serving_imports_neither_torch_nor_onnx(module: str) -> None:
    """A fresh interpreter tells: the serving image has neither."""
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'onnx', 'onnxscript'}} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
