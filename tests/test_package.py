"""`pip install .` installs the whole package, and nothing in it needs the folder it came from."""

import shutil
import subprocess
import sys
from importlib.metadata import Distribution

import pytest
from packaging.requirements import Requirement

import k1
from tests.conftest import ROOT

pytestmark = [pytest.mark.xdist_group("package"), pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the package is installed into, built from a copy, as building writes beside the sources."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "models", "results", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--no-compile", "--target", folder / "site", folder / "source"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "site"


def test_every_module_is_installed_and_no_other(installed):
    kinds = ("py", "jinja", "css", "typed")
    paths = [path.relative_to(ROOT) for kind in kinds for path in (ROOT / "k1").rglob(f"*.{kind}")]
    found = [path.relative_to(installed) for path in (installed / "k1").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(paths) and {path.suffix[1:] for path in found} == set(kinds)


def pins(name: str) -> dict[str, str]:
    """Package -> version in a file of requirements."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and line[0] not in "#-")


def test_what_is_required_is_little_from_the_oldest_tested_versions_and_the_extras_have_the_rest(installed):
    (information,) = installed.glob("k1-*.dist-info")
    required = [Requirement(line) for line in Distribution.at(information).requires]
    library = {item.name: item.specifier for item in required if item.marker is None}
    extras = {item.name: item.specifier for item in required if item.marker} | library
    assert library.keys() == {"torch", "transformers", "numpy", "tqdm"}
    oldest = pins("tests/requirements-oldest.txt")
    assert all(str(library[name]) == f">={oldest[name]}" for name in library.keys() - {"torch"})
    for name, version in {**pins("requirements.txt"), **pins("requirements-dev.txt")}.items():
        assert extras[name].contains(version), name
    assert (information / "licenses" / "LICENSE").is_file()


CODE = """
import csv, logging, os, runpy, signal, sys, warnings
import huggingface_hub as hub, torch, transformers
def state():
    loggers = [None, "datasets", "huggingface_hub", "tokenizers", "torch", "transformers"]
    return {
        "levels": [(logger.level, logger.handlers[:]) for logger in map(logging.getLogger, loggers)],
        "bars": (hub.utils.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()),
        "csv": csv.field_size_limit(), "signals": list(map(signal.getsignal, signal.Signals)),
        "hooks": (sys.excepthook, sys.stdout, sys.stderr, warnings.showwarning), "environment": dict(os.environ),
        "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "type": torch.get_default_dtype(), "gradients": torch.is_grad_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory, "benchmark": torch.backends.cudnn.benchmark,
        "random": torch.get_rng_state().tolist(),
    }
# What transformers itself does when these are imported is not counted.
transformers.PreTrainedModel, transformers.TrainerCallback
before = state()
import k1
[getattr(k1, name) for name in k1.LIBRARY]
after = state()
changed = {name for name in before if before[name] != after[name]}
needless = {"datasets", "pandas", "pyarrow", "matplotlib", "tensorboard", "gensim"} & sys.modules.keys()
print(k1.__file__, changed, needless)
sys.argv = ["k1.export", "--help"]
runpy.run_module("k1.export", run_name="__main__")
"""


def test_names_of_the_scripts_leave_the_hook_for_errors_as_it_was():
    before = sys.excepthook
    assert all(getattr(k1, name) for name in k1.MODULES) and sys.excepthook is before


def test_the_library_changes_nothing_in_the_process_that_imports_it_and_commands_work_from_elsewhere(
    installed, tmp_path
):
    finished = subprocess.run(
        [sys.executable, "-P", "-c", CODE], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"{installed / 'k1' / '__init__.py'} set() set()\nusage: python3 -m k1.export")
