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


def start_collecting(hash_seed: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def test_two_processes_collect_the_same_tests_at_different_seconds():
    first = start_collecting(hash_seed=1)
    time.sleep(1.1)
    collections = [process.communicate(timeout=300)[0].splitlines() for process in (first, start_collecting(2))]
    ids = [[line for line in lines if "::" in line] for lines in collections]
    assert len(ids[0]) > 500
    assert ids[0] == ids[1]
    assert not [name for name in ids[0] if UNSTABLE.search(name) or len(name) > MAX_ID_LENGTH]


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there is one test process")
def test_files_that_share_a_fixture_stay_in_one_of_several_processes(request):
    """pytest-xdist tells a group by the end of the test's id, which not every version of pytest lets it change."""
    shared = [item for item in request.session.items if item.path.name in SHARED]
    assert all(item.nodeid.endswith(f"@{item.path.stem}") for item in shared) and shared
