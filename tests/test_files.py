"""Files of tensors: the SHA-256 sees every change, and reading takes neither code nor more memory than the file."""

import io
import zipfile

import pytest
import torch

from k1.errors import K1Error
from k1.files import conforms, content_digest, read_content, write_content

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
        changed(format=True),
        changed(names=["a", "c"]),
        changed(names=["ab"]),
        changed(nested={**CONTENT["nested"], "x": 2}),
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


def test_what_is_written_comes_back(tmp_path):
    sha256 = write_content(tmp_path / "a.pt", CONTENT)
    content = read_content(tmp_path / "a.pt", "file", 1, "make it again")
    assert content.pop("sha256") == sha256 == content_digest(content) == content_digest(CONTENT)


def endless() -> list:
    value: list = []
    value.append(value)
    return value


def doubling(depth: int = 40) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        endless(),
        doubling(),
        doubling(15) * 60,
        torch.zeros(1).expand(10**12),
        torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(),
        {"a": {1, 2}},
        {1: b"bytes"},
        10**5_000,
    ],
    ids=["endless", "deep", "many", "expanded", "meta", "sparse", "set", "bytes", "long"],
)
def test_values_that_are_not_plain_are_refused(value):
    with pytest.raises(ValueError):
        content_digest({"value": value})


def test_a_hidden_value_is_refused_on_reading(tmp_path):
    content = {**CONTENT, "weights": torch.zeros(1).expand(10**12), "sha256": "0" * 64}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(K1Error, match="larger than its data"):
        read_content(tmp_path / "a.pt", "file", 1, "make it again")


def test_a_compressed_archive_is_refused(tmp_path):
    original = io.BytesIO()
    torch.save({**CONTENT, "weights": torch.zeros(10**6)}, original)
    with (
        zipfile.ZipFile(original) as source,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(K1Error, match="damaged or is not a file; make it again"):
        read_content(tmp_path / "a.pt", "file", 1, "make it again")


def test_the_older_form_of_torch_files_is_refused(tmp_path):
    torch.save(CONTENT, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(K1Error, match="damaged or is not a file"):
        read_content(tmp_path / "a.pt", "file", 1, "make it again")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True), (True, int, False), (1, float, True), (1.5, int, False), ("1", float, False),
        (None, str | None, True), (3, str | None, False), ([1, 2], list[int], True), ([1, "2"], list[int], False),
        ({"a": [1.0]}, dict[str, list[float]], True), ({1: [1.0]}, dict[str, list[float]], False),
        (torch.zeros(2), torch.Tensor, True), ([], torch.Tensor, False), ({}, dict, True), ([], dict, False),
    ],
)  # fmt: skip
def test_types_of_values(value, annotation, expected):
    assert conforms(value, annotation) == expected
