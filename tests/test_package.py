"""`pip install .` installs the whole package, and nothing in it needs the folder it came from."""

import shutil
import subprocess
import sys
from importlib.metadata import Distribution

import pytest

from tests.conftest import ROOT


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
    paths = [path.relative_to(ROOT) for suffix in ("py", "jinja", "css") for path in (ROOT / "k1").rglob(f"*.{suffix}")]
    found = [path.relative_to(installed) for path in (installed / "k1").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(paths) and len({path.suffix for path in found}) == 3


def test_the_requirements_are_those_of_the_file(installed):
    (information,) = installed.glob("k1-*.dist-info")
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert Distribution.at(information).requires == [line for line in lines if line and line[0] != "#"]
    assert (information / "licenses" / "LICENSE").is_file()


CODE = """
import runpy, signal, sys
from transformers.utils import logging
before, signals = logging.get_verbosity(), list(map(signal.getsignal, signal.Signals))
import k1
k1.sparse_updates, k1.Rehearsal, k1.K1Callback
imported = {"datasets", "pandas", "pyarrow", "matplotlib", "tensorboard"} & sys.modules.keys()
is_same = before == logging.get_verbosity() and signals == list(map(signal.getsignal, signal.Signals))
print(k1.__file__, is_same, imported)
sys.argv = ["k1.export", "--help"]
runpy.run_module("k1.export", run_name="__main__")
"""


def test_library_and_commands_work_from_another_folder_and_leave_the_logging_of_transformers_alone(installed, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-P", "-c", CODE], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"{installed / 'k1' / '__init__.py'} True set()\nusage: python3 -m k1.export")
