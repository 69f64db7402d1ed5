"""The package follows the data: no module imports from a later room, none in a circle, and `import k1` is quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module below `root`/k1; a folder stands for its `__init__.py`."""
    files = sorted((root / "k1").rglob("*.py"))
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(file: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of k1) of each import in a module, also of those inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from k1.data import hub` names a module, `from k1.data.hub import get` one of its functions.
            targets = [
                name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, target) for target in targets if target.split(".")[0] == "k1")


def place_of(module: str) -> int:
    """The place in `ORDER` of a module; the package itself, with the public names of all rooms, comes after them."""
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 else len(ORDER)


def forbidden_imports(root: Path) -> list[str]:
    """Each import from a later place of `ORDER`, and one circle between modules if there is any."""
    modules = modules_of(root)
    found, graph = [], {}
    for name, file in modules.items():
        graph[name] = set()
        for line, target in imports_of(file, modules):
            # The package itself hands names on when they are asked for.
            if name != "k1" and place_of(target) > place_of(name):
                found.append(f"{file.relative_to(root)}:{line} imports {target}, which comes after {name}")
            graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a circle: {' is imported by '.join(error.args[1])}")
    return found


def test_no_import_from_a_later_room_and_no_circle():
    assert forbidden_imports(ROOT) == []


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("k1.sparse", {"k1.errors"}),
        ("k1.rehearsal", {"k1.errors", "k1.known", "k1.model", "k1.parallel", "k1.teacher"}),
        ("k1.callback", {"k1.errors", "k1.known", "k1.parallel", "k1.rehearsal", "k1.sparse", "k1.teacher"}),
    ],
)
def test_what_others_may_take_for_themselves_needs_little_of_the_rest(name, allowed):
    modules = modules_of(ROOT)
    assert {target for _, target in imports_of(modules[name], modules)} == allowed


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
    assert set(k1.__all__) & {name.split(".")[1] for name in modules_of(ROOT) if "." in name} == set()
