"""The test processes must collect the same tests, whenever and wherever they are started."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, SHARED

# What differs from one collection to the next: bytes, temporary paths, addresses in memory.
UNSTABLE = re.compile(r"\\x[0-9a-f]{2}|/tmp|pytest-of-| at 0x")
MAX_ID_LENGTH = 200
# Options of pytest that leave out some of the tests of a file: -k, -m, --lf, --deselect.
CHOOSING = ("keyword", "markexpr", "lf", "deselect")


def collected_elsewhere() -> list[str]:
    """The ids of all tests as another process collects them, with another hash seed."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONHASHSEED"] = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    return [line for line in finished.stdout.splitlines() if "::" in line]


def test_two_processes_collect_the_same_tests_at_different_seconds(request):
    """This one did it before its first test, with a hash seed of its own."""
    time.sleep(1.1)
    ids = collected_elsewhere()
    assert len(ids) > 500 and len(set(ids)) == len(ids)
    # In the order in which the files were named.
    files = list(dict.fromkeys(item.path for item in request.session.items))
    mine = [re.sub(r"@\w+$", "", item.nodeid) for item in request.session.items]
    same_files = [name for file in files for name in ids if ROOT / name.split("::")[0] == file]
    # A part of a file, as these options and :: choose it, is in order too.
    assert [name for name in same_files if name in set(mine)] == mine
    chosen = [name for name in CHOOSING if getattr(request.config.option, name, None)]
    if not chosen and not any("::" in argument for argument in request.config.args):
        assert same_files == mine
    assert not [name for name in ids if UNSTABLE.search(name) or len(name) > MAX_ID_LENGTH]


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there is one test process")
def test_files_that_share_a_fixture_stay_in_one_of_several_processes(request):
    """pytest-xdist tells a group by the end of the test's id, which not every version of pytest lets it change."""
    shared = [item for item in request.session.items if item.path.name in SHARED]
    assert all(item.nodeid.endswith(f"@{item.path.stem}") for item in shared) and shared
