"""Read damaged and hostile files of every kind as the scripts do: `python3 -m tests.faults.fuzz --cases 1000 --seed 0`.

Each case damages a copy of a good file and reads it in a process of its own with little memory and
time. It must be read or be refused with one line, nothing from it may be run, and what is read as
a checkpoint or from the cache must be what was written.
"""

import argparse
import faulthandler
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library warns when a process that used threads forks
import torch
from tqdm import tqdm

from k1.data import cache
from k1.errors import command
from k1.model import configure_torch
from tests.faults.fuzz_kinds import KINDS, Kind, write_good_files
from tests.faults.mutations import BYTES, MARKER
from tests.processes import fork_captured, wait_for_end

CASES = 1000
SECONDS = 60
MORE_MEMORY = 1_500 * 2**20


@dataclass
class Outcome:
    """What came of one case; `failure` says what is wrong, None when nothing is."""

    number: int
    kind: str
    mutation: str
    status: int
    stderr: str
    failure: str | None


def read_in_child(kind: Kind, path: Path, seconds: float) -> tuple[int, str, str]:
    """Read `path` in a forked process: (exit status, negative for a signal; result; stderr)."""
    folder = path.parent
    (folder / "tmp").mkdir()
    result, stdout, stderr = (folder / name for name in ("result", "stdout", "stderr"))

    def read() -> None:
        confine(folder)
        command(lambda: result.write_text(kind.read(path)) and None)()

    status = wait_for_end(fork_captured(read, stdout, stderr), seconds)
    return status, result.read_text() if result.exists() else "", stderr.read_text(errors="replace")


def confine(folder: Path) -> None:
    """Give this process little more memory than it has, no core dump, and all its temporary files in `folder`."""
    faulthandler.disable()
    os.chdir(folder)
    os.environ["K1_CACHE"] = str(folder / "new cache")
    tempfile.tempdir = str(folder / "tmp")
    cache.scratch_folder.cache_clear()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def verdict(kind: Kind, mutation: str, status: int, result: str, stderr: str, expected: str) -> str | None:
    """What is wrong with the end of a case; None when nothing is."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    if status not in (0, 1):
        return "killed after too long" if status == -signal.SIGKILL else f"ended with status {status}"
    if "Traceback" in stderr:
        return "a traceback"
    if len(errors) != status:
        return f"status {status} and {len(errors)} error lines"
    if any(not line.startswith(("error:", "warning:")) for line in lines):
        return "other output on stderr"
    if "error: not enough memory" in stderr:
        return "it took all memory"
    if status == 0 and mutation in kind.refused:
        return "read, although it must be refused"
    if status == 0 and kind.same and result != expected:
        return "read, but not as it was written"
    if status == 1 and kind.rebuilt:
        return "refused, although it must be read"
    return None


class Workspace:
    """A folder with one good file of each kind, in which cases are run."""

    def __init__(self, folder: Path, kinds: list[Kind] = KINDS) -> None:
        self.folder = folder
        # A kind with many mutations comes more often: (kind, which of its turns, of how many).
        self.turns = [
            (kind, turn, turns) for kind in kinds for turns in [1 + len(kind.mutations) // 50] for turn in range(turns)
        ]
        torch.set_num_threads(1)
        configure_torch()
        (folder / "good").mkdir()
        with mock.patch.dict(os.environ, K1_CACHE=str(folder / "good" / "cache")):
            write_good_files(folder / "good")
        # A child has a folder of temporary files of its own; this one must outlast it.
        self._scratch = cache.scratch_folder()
        self.expected = {kind.name: self._undamaged(kind) for kind in kinds}

    def _undamaged(self, kind: Kind) -> str:
        case = self._copy(kind, -1)
        status, result, stderr = read_in_child(kind, case / kind.name, SECONDS)
        shutil.rmtree(case)
        if status != 0 or stderr:
            raise RuntimeError(f"the undamaged {kind.name} ends with status {status}: {stderr}")
        return result

    def _copy(self, kind: Kind, number: int) -> Path:
        case = self.folder / f"case {number}"
        case.mkdir()
        for name in {kind.name, "tokenizer.json", *(["lines.jsonl"] if kind.name == "cache" else [])}:
            source = self.folder / "good" / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, case / name)
        return case

    def run(self, seed: int, number: int, seconds: float = SECONDS) -> Outcome:
        """Run one case; its kind and mutation take turns, the rest depends on the seed."""
        kind, turn, turns = self.turns[number % len(self.turns)]
        turn += number // len(self.turns) * turns
        names = list(kind.mutations)
        Random(seed).shuffle(names)
        # Every second case damages bytes, until each other mutation has had its turn.
        special = [name for name in names if name not in BYTES]
        pool = special if special and turn % 2 else list(BYTES)
        mutation = pool[turn // (2 if special else 1) % len(pool)]
        before = set(os.listdir(self.folder))
        case = self._copy(kind, number)
        try:
            kind.mutations[mutation](case / kind.name, Random(f"{seed} {number}"))
            status, result, stderr = read_in_child(kind, case / kind.name, seconds)
            failure = verdict(kind, mutation, status, result, stderr, self.expected[kind.name])
            made = set(os.listdir(self.folder)) - before - {case.name}
            if made or (case / MARKER).exists():
                failure = "code in the file was run"
                for name in made:
                    shutil.rmtree(self.folder / name)
        finally:
            shutil.rmtree(case)
        return Outcome(number, kind.name, mutation, status, stderr, failure)

    def run_all(self, seed: int, numbers: Iterable[int]) -> list[Outcome]:
        """Run the cases `numbers`."""
        return [self.run(seed, number) for number in numbers]


def markdown_table(outcomes: list[Outcome], kinds: list[Kind] = KINDS) -> str:
    """Cases, refused, read and failed for each kind."""
    lines = ["| Kind | Cases | Refused | Read | Failed |", "|---|---:|---:|---:|---:|"]
    total: Counter = Counter()
    for kind in kinds:
        ends = Counter(
            "failed" if outcome.failure else "refused" if outcome.status else "read"
            for outcome in outcomes
            if outcome.kind == kind.name
        )
        total += ends
        lines.append(f"| {kind.name} | {ends.total()} | {ends['refused']} | {ends['read']} | {ends['failed']} |")
    lines.append(f"| all | {total.total()} | {total['refused']} | {total['read']} | {total['failed']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES, help="cases to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--only", type=int, help="run this one case of the seed, and show its stderr")
    arguments = parser.parse_args()
    numbers = range(arguments.cases) if arguments.only is None else [arguments.only]
    with tempfile.TemporaryDirectory(prefix="k1-fuzz-") as folder:
        workspace = Workspace(Path(folder))
        outcomes = workspace.run_all(arguments.seed, tqdm(numbers, unit="case"))
    print(markdown_table(outcomes))
    for outcome in outcomes:
        if outcome.failure or arguments.only is not None:
            print(
                f"seed {arguments.seed}, case {outcome.number}: {outcome.kind}, {outcome.mutation}: "
                f"{outcome.failure or 'as it should be'}\n{outcome.stderr[-1500:]}",
                file=sys.stderr,
            )
    sys.exit(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    main()
