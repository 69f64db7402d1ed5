"""The figures of the report, and the figures in them."""

import json

import pytest
import torch
from conftest import run_script

from k1.checkpoint import FILES, load_checkpoint
from k1.metrics import selection_of
from k1.report_plots import plot_report
from k1.selection import module_group

PICTURES = ["accuracy.png", "learning.png", "selection.png"]


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    finished = run_script(
        "-m k1.report",
        "--models_dir",
        trained.models_dir,
        "--json",
        folder / "report.json",
        "--plots",
        folder / "plots",
    )
    assert finished.status == 0, finished.stderr
    return folder


def test_the_pictures_are_drawn_and_the_same_each_time(drawn, tmp_path):
    plot_report(json.loads((drawn / "report.json").read_text()), tmp_path)
    for name in PICTURES:
        content = (drawn / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5_000
        assert (tmp_path / name).read_bytes() == content


def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_computed(trained, tmp_path):
    (tmp_path / "plots").write_text("")
    finished = run_script("-m k1.report", "--models_dir", trained.models_dir, "--plots", tmp_path / "plots")
    assert finished.status == 2 and finished.stdout == ""
    assert finished.stderr.splitlines()[-1].endswith("is not a folder")


def test_selection_is_that_of_the_files(trained):
    run = [load_checkpoint(trained.models_dir / file, "k1") for file in FILES["k1"]]
    found = selection_of(run)
    first, second, third = (checkpoint.model for checkpoint in run)
    names = list(run[0].importance)
    assert list(found["share"]) == [
        "embedding", "attention 0", "feed-forward 0", "attention 1", "feed-forward 1", "output"
    ]  # fmt: skip
    for group, overlap in found["overlap"].items():
        members = [name for name in names if module_group(name) == group]
        in_second = torch.cat([(first[name] != second[name]).flatten() for name in members])
        in_third = torch.cat([(second[name] != third[name]).flatten() for name in members])
        assert overlap == pytest.approx(float(in_third[in_second].float().mean()))
        shares = [entry["updated_by_group"][group] for entry in run[1].history]
        assert found["share"][group][1] == pytest.approx(sum(shares) / len(shares))
    assert found["overlap_by_chance"] == pytest.approx(0.51, abs=0.01)
    everything = selection_of([load_checkpoint(trained.models_dir / file, "baseline") for file in FILES["baseline"]])
    assert all(overlap == pytest.approx(1, abs=0.05) for overlap in everything["overlap"].values())
