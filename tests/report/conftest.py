"""Fixtures: one report of the trained models, with all that the command can write."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.conftest import build_once, run_script


@dataclass
class WrittenReport:
    """What `python3 -m k1.report` printed, and its folder with report.json, report.html and, in new/plots, pictures."""

    printed: CompletedProcess[str]
    folder: Path

    @property
    def results(self) -> dict:
        """The content of report.json, read anew."""
        return json.loads((self.folder / "report.json").read_text())


def write_report(models_dir: Path, folder: Path) -> WrittenReport:
    """Run the command once, into `folder`."""
    flags = ["--json", folder / "report.json", "--html", folder / "report.html", "--plots", folder / "new" / "plots"]
    finished = run_script("-m k1.report", "--models_dir", models_dir, *flags)
    assert finished.returncode == 0, finished.stderr
    return WrittenReport(finished, folder)


@pytest.fixture(scope="session")
def written(trained, tmp_path_factory) -> WrittenReport:
    """The report of the trained models."""
    return build_once(tmp_path_factory, "report", partial(write_report, trained.models_dir))
