"""python3 -m tests.faults.kills: kill the training scripts at random moments, start them again, and compare the files.

Every script runs once undisturbed (preset smoke). Then each is killed again and
again, by SIGKILL, SIGTERM or Ctrl-C, and started again until it ends. A kill has
been survived when the checkpoints are the same bits as the undisturbed ones, nothing is
left over, and no start printed a traceback or ended with another status than its
signal's. stdout: a table; exit status 1 if one was not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from k1.experiment import FILES
from k1.files import content_digest
from tests.processes import ServerProcess

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
Launch = Callable[[str, list[str], Path, Path], "subprocess.Popen | ServerProcess"]
OUTPUTS = {
    **{f"train_k1_dataset{stage}.py": [file] for stage, file in enumerate(FILES["k1"], start=1)},
    "train_baseline_all.py": list(FILES["baseline"]),
}


@dataclass
class Tally:
    """What happened to one script: kills, resumed starts, problems found."""

    kills: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)


def start(script: str, flags: list[str], stdout: Path, stderr: Path) -> subprocess.Popen:
    """Start `script` with its output in files."""
    with open(stdout, "wb") as out, open(stderr, "wb") as err:
        command = [sys.executable, str(ROOT / script), *flags]
        return subprocess.Popen(command, stdout=out, stderr=err, preexec_fn=heed_interrupts)


def heed_interrupts() -> None:
    """Let Ctrl-C reach this process, also if it was started from one that ignores it, as in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def flags_of(script: str, corpora: list[str], models_dir: Path) -> list[str]:
    """The command line of a script in this test."""
    common = ["--models_dir", str(models_dir), "--preset", "smoke", "--data_source", "bundled", "--threads", "1"]
    common += ["--save_steps", "2"]
    if not corpora:
        return common
    chosen = ["--dataset_names", *corpora] if "baseline" in script else ["--dataset_name", corpora[int(script[-4]) - 1]]
    return [*common, *chosen]


def is_writing(models_dir: Path) -> bool:
    """Whether a checkpoint or resume file is just being written."""
    return any(file.name.startswith(".") and ".pt." in file.name for file in models_dir.iterdir())


def kill_until_it_ends(
    script: str, flags: list[str], kills: int, duration: float, models_dir: Path, generator: random.Random,
    launch: Launch,
) -> Tally:  # fmt: skip
    """Kill `script` `kills` times, each at a random moment of the `duration` that it takes, then let it end."""
    tally, stdout, stderr = Tally(), models_dir.with_suffix(".out"), models_dir.with_suffix(".err")
    while True:
        stderr.unlink(missing_ok=True)
        process, number = launch(script, flags, stdout, stderr), None
        if tally.kills < kills:
            number = generator.choices(list(KILLS), weights=[2, 1, 1])[0]
            waits_for_write = number == signal.SIGKILL and generator.random() < 0.5
            end = time.monotonic() + generator.uniform(0, duration)
            while process.poll() is None and (time.monotonic() < end or waits_for_write and not is_writing(models_dir)):
                time.sleep(0.001)
            if process.poll() is None:
                process.send_signal(number)
                tally.kills += 1
        status, errors = process.wait(timeout=600), stderr.read_text()
        tally.resumed += "resuming from" in errors
        # Before a script's first line Python itself tells of a Ctrl-C, and the signal alone ends the process.
        if number == signal.SIGINT and errors.startswith("Traceback") and errors.endswith("KeyboardInterrupt\n"):
            continue
        if "Traceback" in errors:
            tally.problems.append(f"traceback: {errors[-2000:]}")
        if status == 0:
            return tally
        if number is None or status not in (KILLS[number], -number):
            tally.problems.append(f"status {status} after signal {number}: {errors[-500:]}")
            return tally


def differences(script: str, expected: Path, found: Path) -> list[str]:
    """How what `script` left in the folder `found` differs from that in `expected`."""
    wrong = [f"{file.name}: left over" for file in found.iterdir() if "resume" in file.name or ".pt." in file.name]
    for file in OUTPUTS[script]:
        first, second = (torch.load(folder / file, weights_only=True) for folder in (expected, found))
        for content in (first, second):
            del content["sha256"]
            for entry in content["history"]:
                del entry["tokens_per_second"]
        wrong += [f"{file}: other {key}" for key in first if content_digest(first[key]) != content_digest(second[key])]
    return wrong


def run(
    kills: int, seed: int, kills_a_run: int, corpora: list[str], scripts: list[str], launch: Launch = start
) -> dict[str, Tally]:
    """Kill the scripts `kills` times in all, in turn; returns what happened to each. `launch` is used as `start`."""
    generator, durations = random.Random(seed), {}
    tallies = {script: Tally() for script in scripts}
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder, "undisturbed")
        expected.mkdir()
        for script in scripts:
            started = time.monotonic()
            files = [Path(folder, f"{script}.{name}") for name in ("out", "err")]
            if launch(script, flags_of(script, corpora, expected), *files).wait(600) != 0:
                sys.exit(f"{script} does not run:\n" + files[1].read_text())
            durations[script] = time.monotonic() - started
        while (left := kills - sum(tally.kills for tally in tallies.values())) > 0:
            script = min(scripts, key=lambda script: tallies[script].kills)
            models_dir = Path(tempfile.mkdtemp(dir=folder))
            for file in expected.glob("*.pt"):
                if file.name not in OUTPUTS[script]:
                    os.link(file, models_dir / file.name)
            flags = flags_of(script, corpora, models_dir)
            tally = kill_until_it_ends(
                script, flags, min(kills_a_run, left), durations[script], models_dir, generator, launch
            )
            sums = tallies[script]
            sums.kills += tally.kills
            sums.resumed += tally.resumed
            sums.problems += tally.problems or differences(script, expected, models_dir)
            print(f"{script}: {sums.kills} kills, {len(sums.problems)} problems", file=sys.stderr)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills_a_run", type=int, default=4, help="before a script is let to its end")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tallies = run(arguments.kills, arguments.seed, arguments.kills_a_run, [], list(OUTPUTS))
    print("| Script | Kills | Starts that resumed | Problems |\n|---|--:|--:|--:|")
    for script, tally in tallies.items():
        print(f"| {script} | {tally.kills} | {tally.resumed} | {len(tally.problems)} |")
        print("".join(f"{script}: {problem}\n" for problem in tally.problems), end="", file=sys.stderr)
    sys.exit(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    main()
