"""Loads documents as tests of the hub want it: `hub_child.py <phases> <limits>`, both JSON, prints the results.

A phase is a list of cases {"token", "home", "copy", "loads"}, or "close", which ends the server. All
cases of a phase run beside each other, each in a fork of this process: that costs no time for imports
and knows nothing of other cases. `token` says what the server does, `home` is the cache folder, which
begins as a copy of the folder `copy`, and `loads` is a list of arguments of `load_documents`. `limits`
replaces the time-outs of k1.data.hub. The result of a case is {"loads": [...], "printed": text}.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import datasets
import huggingface_hub

from k1.data import hub, sources
from tests.processes import fork_captured

AT_ONCE = 12


def load(arguments: list) -> dict:
    """The documents of each split and the source, or the error; and the seconds that it took."""
    start = time.monotonic()
    try:
        documents, source = sources.load_documents(*arguments)
        result = {"source": source, **{name: split["text"][:] for name, split in documents.items()}}
    except sources.K1Error as error:
        result = {"error": str(error)}
    return {**result, "seconds": time.monotonic() - start}


def start_case(case: dict, folder: Path) -> int:
    """Run a case in a fork, which leaves its result and what it printed in `folder`; returns its process id."""
    folder.mkdir()
    return fork_captured(lambda: run_case(case, folder / "result"), folder / "printed", folder / "printed")


def run_case(case: dict, path: Path) -> None:
    """Write what the loads of a case gave to `path`."""
    home = Path(os.environ["HF_HOME"], case["home"])
    if case.get("copy"):
        shutil.copytree(Path(os.environ["HF_HOME"], case["copy"]), home, symlinks=True)
    os.environ["HF_TOKEN"] = case["token"]
    # The stand-ins must not be what later tests find under the names of the bundled corpora.
    os.environ["K1_CACHE"] = str(home / "k1")
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 16  # else only files above 10 MB are resumed
    huggingface_hub.constants.HF_HUB_CACHE = str(home / "hub")
    datasets.config.HF_DATASETS_CACHE = home / "datasets"
    datasets.config.DOWNLOADED_DATASETS_PATH = home / "datasets" / "downloads"
    datasets.config.EXTRACTED_DATASETS_PATH = home / "datasets" / "downloads" / "extracted"
    path.write_text(json.dumps([load(arguments) for arguments in case["loads"]]))


def run_phase(phase: list, folder: Path) -> list[dict]:
    running = set()
    for number, case in enumerate(phase):
        while len(running) >= AT_ONCE:
            running.discard(os.wait()[0])
        running.add(start_case(case, folder / str(number)))
    while running:
        running.discard(os.wait()[0])
    folders = [folder / str(number) for number in range(len(phase))]
    assert all((left / "result").exists() for left in folders), [(left / "printed").read_text() for left in folders]
    return [
        {"loads": json.loads((left / "result").read_text()), "printed": (left / "printed").read_text()}
        for left in folders
    ]


if __name__ == "__main__":
    sources.bundled_documents = lambda name: iter([f"stand-in {name}"])
    vars(hub).update(json.loads(sys.argv[2]))
    results = []
    for phase in json.loads(sys.argv[1]):
        if phase == "close":
            urllib.request.urlopen(datasets.config.HF_ENDPOINT + "/close").read()
        else:
            with tempfile.TemporaryDirectory() as folder:
                results.append(run_phase(phase, Path(folder)))
    print(json.dumps(results))
