"""Datasets and models of a hub on the loopback address (tests/data/hub.py): loaded, cached, or refused in one line."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.data.hub import COMMIT, REPOSITORIES, hub_server
from tests.pretrained import train_own_tokenizer, write_model

pytestmark = [pytest.mark.xdist_group("hub"), pytest.mark.slow]

# In a process of its own, as the libraries read the hub's address when they are imported; it does not wait to retry.
LOAD = """
import csv, json, logging, sys, time
import datasets, huggingface_hub, transformers

def state():
    clients = huggingface_hub.get_session().__class__, huggingface_hub.get_session().timeout
    bars = [library.utils.are_progress_bars_disabled() for library in (datasets, huggingface_hub)]
    bars.append(transformers.utils.logging.is_progress_bar_enabled())
    loggers = [logging.getLogger(name).level for name in ("datasets", "huggingface_hub", "transformers")]
    offline = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    return clients, loggers, bars, offline, csv.field_size_limit()

before = state()
from k1.data.initial import load_pretrained
from k1.data.sources import load_documents
from k1.errors import K1Error
assert state() == before, "importing changed the process"
time.sleep = lambda seconds: None
for kind, *arguments in json.loads(sys.argv[1]):
    try:
        if kind == "model":
            result = load_pretrained(*arguments, seed=0).start
        else:
            documents, source = load_documents(*arguments)
            result = {"source": source, **{name: split["text"][:] for name, split in documents.items()}}
    except K1Error as error:
        result = str(error)
    print(json.dumps(result))
assert state() == before, "loading changed the process"
"""
ARTICLES = "First = one .\nSecond .\nThird ."
CODE = [f"  def f{number}()" for number in range(5)]


def load(home, endpoint, *loads, **environment):
    """The results of the loads, each a list: a kind and the arguments; and the lines on stderr."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", LOAD, json.dumps(loads)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()], finished.stderr.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = ["Some words to learn from, which are few.", "And some more words."]
    return write_model(tmp_path_factory.mktemp("model"), "llama", train_own_tokenizer(texts))


@pytest.fixture(scope="module")
def endpoint(folder):
    REPOSITORIES["owner/model"] = {
        **{file.name: file.read_bytes() for file in folder.iterdir()},
        "model.py": b"raise SystemExit", "pytorch_model.bin": b"pickle",
    }  # fmt: skip
    with hub_server() as address:
        yield address


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def loaded(endpoint, home):
    return load(
        home, endpoint, ["data", "wikitext", "hub"], ["data", "code", "auto", 2],
        ["data", "codeparrot/codeparrot-clean-valid"], ["model", "owner/model"],
    )  # fmt: skip


def test_datasets_are_loaded_and_the_process_is_left_as_it_was(loaded):
    results, printed = loaded
    splits = {name: [ARTICLES, f"Fourth .\n{name}"] for name in ("train", "validation", "test")}
    assert results[:3] == [
        {"source": "hub", **splits},
        {"source": "hub", "train": CODE[:2]},
        {"source": "hub", "train": CODE},
    ]
    assert printed == []


def test_of_a_model_only_what_holds_no_code_is_downloaded_and_its_commit_recorded(loaded, home, folder):
    assert loaded[0][3]["revision"] == COMMIT
    files = {path.name for path in home.rglob("*/snapshots/*/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not files & {"model.py", "pytorch_model.bin"}


REFUSED = {
    "owner/name": "Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed",
    "owner/columns": 'owner/columns: columns are a, b; rename the one with the documents to "text"',
    "owner/held-out": "it has no split train, only test",
    "Salesforce/wikitext:wikitext-3": "wikitext-3",
    "math": 'Field "text" does not exist in schema',
}


def test_tables_and_splits_are_read_and_what_cannot_be_is_one_line_that_says_why(endpoint, tmp_path):
    """Also if another configuration of the dataset is there already."""
    good = [["data", "wikitext"], ["data", "science"], ["data", "stories", "auto", 2]]
    bad = [*(["data", name] for name in REFUSED), ["model", "owner/name"]]
    (_, science, stories, *results), printed = load(tmp_path, endpoint, *good, *bad)
    assert science == {"source": "hub", "train": ["On A\n\nThe problem", "On B\n\nWe"]}
    assert stories == {"source": "hub", "train": ["Once", "upon"]}
    for name, found in zip(REFUSED, results):
        assert REFUSED[name] in found and name in found and "\n" not in found, found
    assert (
        "no folder owner/name, and no model of this name can be had from the hub: 404 Client Error. Repository Not"
        in results[-1]
    )
    assert printed == []


@pytest.mark.parametrize("offline", ["", "1"])
def test_without_the_hub_the_cached_copy_is_taken_else_the_bundled_text(loaded, home, offline):
    reason = f"on the Hub ({'OfflineModeIsEnabled' if offline else 'LocalEntryNotFoundError'})"
    cached = [["data", "wikitext", "hub"], ["data", "code"], ["model", "owner/model"]]
    missing = [*2 * [["data", "science", "auto", 1]], ["data", "science", "hub"], ["data", "stories"]]
    results, [warning] = load(
        home, "http://127.0.0.1:9", *cached, *missing, ["model", "owner/other"], HF_HUB_OFFLINE=offline
    )
    assert results[:3] == [loaded[0][0], {"source": "hub", "train": CODE}, loaded[0][3]]
    assert results[3]["source"] == results[4]["source"] == "bundled"
    assert warning.startswith("warning: the bundled text is used, as science cannot be loaded from the hub: ")
    assert reason in warning and reason in results[5] and reason in results[6]
    assert "use --data_source bundled" in results[5] and "use a local path" in results[6]
    assert results[7].startswith("there is no folder owner/other, and no model of this name can be had from the hub: ")
