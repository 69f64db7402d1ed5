"""Files of tensors: the SHA-256 sees every change, and reading takes neither code nor more memory than the file."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

from k1.files import content_digest, read_content, write_content, write_text
from k1.flag_types import file_to_write, folder_to_write

CONTENT = {
    "format": 1, "names": ["a", "b"], "nested": {"x": 1, "y": 2.5, "z": None, "w": True},
    "weights": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True, False]), "step": torch.tensor(3.0),
}  # fmt: skip


def changed(**values) -> dict:
    return {**CONTENT, **values}


@pytest.mark.parametrize(
    "other",
    [
        changed(format=2),
        changed(format=1.0),
        changed(names=["a", "c"]),
        changed(names=["ab"]),
        changed(weights=CONTENT["weights"].view(3, 2)),
        changed(weights=CONTENT["weights"].double()),
        changed(weights=CONTENT["weights"].nextafter(torch.tensor(9.0))),
        changed(mask=torch.tensor([True, True])),
        changed(step=torch.tensor([3.0])),
        {name: value for name, value in CONTENT.items() if name != "step"},
    ],
)
def test_every_change_changes_the_digest(other):
    assert content_digest(other) != content_digest(CONTENT)


def test_the_digest_does_not_depend_on_how_a_tensor_lies_in_memory():
    column_major = CONTENT["weights"].T.contiguous().T
    assert not column_major.is_contiguous()
    assert content_digest(changed(weights=column_major)) == content_digest(CONTENT)


def test_what_is_written_comes_back_and_nothing_is_left_of_a_write_that_was_killed(tmp_path):
    (tmp_path / ".a.pt.part").mkdir()
    sha256 = write_content(tmp_path / "a.pt", CONTENT)
    content = read_content(tmp_path / "a.pt", "file", 1, "make it again")
    assert content.pop("sha256") == sha256 == content_digest(content) == content_digest(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    (tmp_path / "shown").write_text("before, ")
    with open(tmp_path / "shown", "a") as file:
        write_text(Path(f"/dev/fd/{file.fileno()}"), "text")
    assert (tmp_path / "shown").read_text() == "before, text"
    write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "shown"]


def test_a_target_below_the_home_folder_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file_to_write("~/x.json") == tmp_path / "x.json"
    assert folder_to_write("~/plots") == tmp_path / "plots" and (tmp_path / "plots").is_dir()


def test_a_device_is_a_file_to_write_and_no_new_one_is_made():
    assert file_to_write("/dev/null") == Path("/dev/null")
    with pytest.raises(ArgumentTypeError, match="/dev/report.json is not a file in a folder that can be written"):
        file_to_write("/dev/report.json")
