"""Models on a hub on the loopback address: only what holds no code is downloaded, and a hub that fails is one line."""

import json
import re
import shutil
import threading
from http.server import ThreadingHTTPServer

import datasets
import huggingface_hub
import pytest

from k1.data import hub
from k1.data.initial import load_pretrained
from k1.errors import K1Error
from tests.data.hub import Handler, Hub, token
from tests.pretrained import train_own_tokenizer, write_model

NAME = "owner/model"


class ModelHandler(Handler):
    """The hub of `tests.data.hub` where models are asked for, which have other addresses than datasets."""

    def do_GET(self) -> None:
        self.path = self.path.replace("/api/models/", "/api/datasets/")
        self.path = re.sub(f"^/{NAME}/resolve/", f"/datasets/{NAME}/resolve/", self.path)
        super().do_GET()

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def versions(tmp_path_factory, corpora):
    """Two versions of a model, as folders."""
    tokenizer = train_own_tokenizer([json.loads(line)["text"] for line in corpora[0].read_text().splitlines()])
    return {
        version: write_model(tmp_path_factory.mktemp(version), "llama", tokenizer, seed)
        for seed, version in enumerate("ab")
    }


@pytest.fixture
def server(versions, tmp_path, monkeypatch):
    """Serves the models, with code and a pickle beside; what it keeps and what has failed is forgotten afterwards."""
    extra = {"model.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "README.md": b"# Model\n"}
    repositories = {
        version: {NAME: {file.name: file.read_bytes() for file in folder.iterdir()} | extra}
        for version, folder in versions.items()
    }
    handler = type("BoundHandler", (ModelHandler,), {"hub": Hub(repositories)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub, "silent", {})
        for name, seconds in (("PROBE_SECONDS", 2), ("ANSWER_SECONDS", 1), ("SILENCE_SECONDS", 2)):
            monkeypatch.setattr(hub, name, seconds)
        monkeypatch.setenv("HF_TOKEN", token())
        yield handler.hub
        handler.hub.closing.set()
        running.shutdown()


def sha256_of(folder):
    return load_pretrained(str(folder), seed=0).start["sha256"]


def test_the_newest_version_is_taken_and_its_commit_recorded(server, versions, tmp_path, monkeypatch):
    assert load_pretrained(NAME, seed=0).start == {
        "name": NAME, "revision": 40 * "a", "sha256": sha256_of(versions["a"]),
    }  # fmt: skip
    files = {path.name for path in (tmp_path / "hub").rglob("*/snapshots/*/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not files & {"model.py", "pytorch_model.bin", "README.md"}
    monkeypatch.setenv("HF_TOKEN", token(version="b"))
    newer = load_pretrained(NAME, seed=0).start
    assert (newer["revision"], newer["sha256"]) == (40 * "b", sha256_of(versions["b"]))
    # Without the hub the version that a checkpoint names is the one in the cache.
    monkeypatch.setenv("HF_TOKEN", token("500", "all"))
    for version in "ab":
        found = load_pretrained(NAME, seed=0, revision=40 * version).start
        assert (found["revision"], found["sha256"]) == (40 * version, sha256_of(versions[version]))


@pytest.mark.parametrize(
    ("fault", "place", "message"),
    [
        ("404", "all", "has no public model owner/model"),
        ("500", "files", "500 Internal Server Error"),
        ("hang", "all", "no answer from"),
        ("stall", "files", "the data breaks off"),
        ("checksum", "files", "wrong checksum of"),
    ],
)
def test_a_hub_that_fails_is_one_clear_line(fault, place, message, server, versions, monkeypatch, capfd):
    """And what came before it failed does no harm later."""
    monkeypatch.setenv("HF_TOKEN", token(fault, place))
    with pytest.raises(K1Error) as refused:
        load_pretrained(NAME, seed=0)
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1
    assert "name another model, or a folder that exists" in str(refused.value)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("HF_TOKEN", token())
    hub.silent.clear()
    assert load_pretrained(NAME, seed=0).start["sha256"] == sha256_of(versions["a"])


def test_a_folder_comes_before_a_model_on_the_hub(server, versions, tmp_path, monkeypatch):
    shutil.copytree(versions["b"], tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    found = load_pretrained(NAME, seed=0).start
    assert (found["name"], found["revision"]) == (str(tmp_path / NAME), "")
