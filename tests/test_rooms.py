"""The package follows the data: no module imports from a later room, none in a circle, and `import k1` is quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import k1
from tests.conftest import ROOT

# Modules at the top and rooms, in the order in which they may build on each other.
ORDER = (
    "errors", "experiment", "flag_types", "sparse", "files", "parallel", "config", "model", "known", "teacher",
    "rehearsal", "callback", "data", "checkpoints", "training", "report", "stages", "export", "benchmark", "study",
)  # fmt: skip
HEAVY = {"torch", "transformers", "huggingface_hub", "matplotlib", "peft", "tensorboard"}


# Dotted name -> file; a folder stands for its `__init__.py`.
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "k1").rglob("*.py"))
}


def imports_of(file: Path) -> Iterator[str]:
    """The module of each import in `file`, also of those inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from k1.data import hub` names a module, `from k1.data.hub import get` one of its functions.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


IMPORTS = {
    name: {target for target in imports_of(file) if target.split(".")[0] == "k1"} for name, file in MODULES.items()
}


def place_of(module: str) -> int:
    """The place in `ORDER` of a module; the package itself, with the public names of all rooms, comes after them."""
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 else len(ORDER)


def test_no_import_from_a_later_room_and_no_circle():
    pairs = [(name, target) for name, targets in IMPORTS.items() for target in targets]
    assert [(name, target) for name, target in pairs if place_of(target) > place_of(name)] == []
    TopologicalSorter(IMPORTS).prepare()


def heavy_modules_after(statement: str) -> set[str]:
    """The large libraries that Python has imported after `statement`."""
    code = f"import sys; {statement}; print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return HEAVY & set(finished.stdout.split())


@pytest.mark.parametrize("statement", ["import k1", "from k1 import command", "import k1.experiment, k1.errors"])
def test_large_libraries_wait_until_they_are_needed(statement):
    assert heavy_modules_after(statement) == set()


def test_sparse_updates_need_torch_alone():
    assert heavy_modules_after("import k1.sparse") == {"torch"}


def test_no_public_name_is_also_a_module():
    assert set(k1.__all__) & {name.split(".")[1] for name in MODULES if "." in name} == set()
