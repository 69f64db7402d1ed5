"""python3 -m tests.faults.kills: kill the six scripts at random moments, start them again, and compare what comes out.

Every script runs once undisturbed (preset smoke). Then each is killed again and
again, by SIGKILL, SIGTERM or Ctrl-C, and started again until it ends. A kill has
been survived when the checkpoints, or the generated text, are the same bits as the
undisturbed ones, nothing is left over, and no start printed a traceback or ended
with another status than its signal's. stdout: a table; exit status 1 if one was not.
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
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent.parent

from k1.experiment import FILES  # noqa: E402
from k1.files import content_digest  # noqa: E402
from tests.processes import ServerProcess  # noqa: E402

TOTAL = 100
KILLS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
# A process that Python has not yet set up is ended by the signal itself.
EARLY = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: -signal.SIGINT}
Launch = Callable[[str, list[str], Path, Path], "subprocess.Popen | ServerProcess"]
OUTPUTS = {
    **{f"train_k1_dataset{stage}.py": [file] for stage, file in enumerate(FILES["k1"], start=1)},
    "train_baseline_all.py": list(FILES["baseline"]),
    "generate_k1.py": [],
    "generate_baseline.py": [],
}


@dataclass
class Tally:
    """What happened to one script: kills, how many hit while a file was written, resumed starts, problems found."""

    kills: int = 0
    inside_write: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)


def start(script: str, flags: list[str], stdout: Path, stderr: Path) -> subprocess.Popen:
    """Start `script` with its output in files."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with open(stdout, "wb") as out, open(stderr, "wb") as err:
        command = [sys.executable, str(ROOT / script), *flags]
        return subprocess.Popen(command, stdout=out, stderr=err, env=environment, preexec_fn=heed_interrupts)


def heed_interrupts() -> None:
    """Let Ctrl-C reach this process, also if it was started from one that ignores it, as in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def flags_of(script: str, corpora: list[str], models_dir: Path) -> list[str]:
    """The command line of a script in this test."""
    if script.startswith("generate"):
        return ["--models_dir", str(models_dir), "--max_new_tokens", "20"]
    common = [
        "--models_dir", str(models_dir), "--preset", "smoke", "--data_source", "bundled", "--threads", "1",
        "--save_steps", "2",
    ]  # fmt: skip
    if not corpora:
        return common
    chosen = ["--dataset_names", *corpora] if "baseline" in script else ["--dataset_name", corpora[int(script[-4]) - 1]]
    return [*common, *chosen]


def is_writing(models_dir: Path, script: str) -> bool:
    """Whether a checkpoint or resume file of `script` is just being written."""
    names = [f".{Path(file).stem}." for file in OUTPUTS[script]]
    return any(file.name.startswith(tuple(names)) and ".pt." in file.name for file in models_dir.iterdir())


def kill_until_it_ends(
    script: str,
    kills: int,
    duration: float,
    models_dir: Path,
    flags: list[str],
    scratch: Path,
    generator: random.Random,
    launch: Launch,
) -> Tally:
    """Kill `script` `kills` times, each at a random moment of the `duration` that it takes, then let it end."""
    tally = Tally()
    while True:
        for name in ("killed.out", "killed.err"):
            (scratch / name).unlink(missing_ok=True)
        process = launch(script, flags, scratch / "killed.out", scratch / "killed.err")
        if tally.kills < kills:
            number = generator.choices(list(KILLS), weights=[2, 1, 1])[0]
            wait_for_write = number == signal.SIGKILL and generator.random() < 0.5 and bool(OUTPUTS[script])
            end = time.monotonic() + generator.uniform(0, duration)
            while process.poll() is None and (
                time.monotonic() < end or wait_for_write and not is_writing(models_dir, script)
            ):
                time.sleep(0.001)
            if process.poll() is None:
                process.send_signal(number)
                tally.kills += 1
        status = process.wait(timeout=600)
        errors = (scratch / "killed.err").read_text()
        tally.resumed += "resuming from" in errors
        # Python itself tells of a Ctrl-C before a script's first line.
        is_early = errors.startswith("Traceback") and errors.endswith("KeyboardInterrupt\n") and number == signal.SIGINT
        if is_early:
            continue
        if "Traceback" in errors:
            tally.problems.append(f"traceback: {errors[-2000:]}")
        if status == 0:
            return tally
        if is_writing(models_dir, script):
            tally.inside_write += 1
        if status not in (KILLS[number], EARLY.get(number)):
            tally.problems.append(f"status {status} after signal {number}: {errors[-500:]}")
            return tally


def differences(script: str, expected: Path, found: Path, scratch: Path) -> list[str]:
    """How the outcome of `script` in the folder `found` differs from that in `expected`."""
    if not OUTPUTS[script]:
        same = (scratch / "killed.out").read_bytes() == (scratch / f"{script}.out").read_bytes()
        return [] if same else ["other text"]
    wrong = [file.name for file in found.iterdir() if "resume" in file.name or ".pt." in file.name]
    wrong += [f"{file}: missing" for file in OUTPUTS[script] if not (found / file).exists()]
    for file in OUTPUTS[script] if not wrong else ():
        a, b = (torch.load(folder / file, weights_only=True) for folder in (expected, found))
        for part in ("model", "written"):
            if content_digest({part: a[part]}) != content_digest({part: b[part]}):
                wrong.append(f"{file}: other {part}")
        losses = [[entry["loss"] for entry in content["history"]] for content in (a, b)]
        if losses[0] != losses[1] or a["evaluations"] != b["evaluations"]:
            wrong.append(f"{file}: other history or evaluations")
    return wrong


def run(
    kills: int, seed: int, kills_a_run: int, corpora: list[str], scripts: list[str], launch: Launch = start
) -> dict[str, Tally]:
    """Kill the scripts `kills` times in all, in turn; returns what happened to each. `launch` is used as `start`."""
    generator = random.Random(seed)
    tallies = {script: Tally() for script in scripts}
    with tempfile.TemporaryDirectory() as folder:
        scratch, expected = Path(folder), Path(folder, "undisturbed")
        durations = {}
        expected.mkdir()
        last = max(list(OUTPUTS).index(script) for script in scripts)
        for script in list(OUTPUTS)[: last + 1]:
            started = time.monotonic()
            files = [scratch / f"{script}.{name}" for name in ("out", "err")]
            if launch(script, flags_of(script, corpora, expected), *files).wait(600) != 0:
                sys.exit(f"{script} does not run:\n" + (scratch / f"{script}.err").read_text())
            durations[script] = time.monotonic() - started
        bar = tqdm(total=kills, unit="kill", file=sys.stderr)
        done = 0
        while done < kills:
            for script in scripts:
                models_dir = Path(tempfile.mkdtemp(dir=scratch))
                for file in expected.glob("*.pt"):
                    if file.name not in OUTPUTS[script]:
                        os.link(file, models_dir / file.name)
                wanted = min(kills_a_run, kills - done)
                tally = kill_until_it_ends(
                    script, wanted, durations[script], models_dir, flags_of(script, corpora, models_dir), scratch,
                    generator, launch,
                )  # fmt: skip
                if wanted:
                    tally.problems += differences(script, expected, models_dir, scratch)
                done += tally.kills
                bar.update(tally.kills)
                sums = tallies[script]
                sums.kills += tally.kills
                sums.inside_write += tally.inside_write
                sums.resumed += tally.resumed
                sums.problems += tally.problems
                if done >= kills:
                    break
        bar.close()
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=TOTAL)
    parser.add_argument("--kills_a_run", type=int, default=4, help="before a script is let to its end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scripts", nargs="+", choices=list(OUTPUTS), default=list(OUTPUTS))
    parser.add_argument("--dataset_names", nargs=3, default=[], metavar="NAME", help="(default: the bundled text)")
    arguments = parser.parse_args()
    tallies = run(
        arguments.kills, arguments.seed, arguments.kills_a_run, arguments.dataset_names, arguments.scripts
    )  # fmt: skip
    print("| Script | Kills | While a file was written | Starts that went on from a resume file | Problems |")
    print("|---|--:|--:|--:|--:|")
    for script, tally in tallies.items():
        print(f"| {script} | {tally.kills} | {tally.inside_write} | {tally.resumed} | {len(tally.problems)} |")
        for problem in tally.problems:
            print(f"{script}: {problem}", file=sys.stderr)
    sys.exit(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    main()
