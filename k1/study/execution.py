"""The runs of the study: several at a time, each recorded as it ends."""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

from tqdm import tqdm

from k1.errors import Diverged, K1Error
from k1.files import write_text
from k1.study.sequence import learn_first_dataset, learn_later_datasets


@dataclass(frozen=True)
class Run:
    """One training: a method at one seed, learning rate and setting of its dial.

    A run whose `method` is `first-baseline` or `first-k1` learns dataset 1 alone.
    """

    method: str
    seed: int
    learning_rate: float
    setting: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        setting = "".join(f"-{name}{value:g}" for name, value in self.setting)
        return f"{self.method}-seed{self.seed}-{self.learning_rate:g}{setting}"


def execute(run: Run, first: Run | None, out: Path, settings: dict) -> dict:
    """Train and evaluate `run` in this process, from the model that the run `first` left; returns its record.

    A training that diverges is recorded as such; raises `K1Error` for any other failure.
    """
    identity = {**asdict(run), "setting": dict(run.setting)}
    try:
        if first is None:
            kind = run.method.removeprefix("first-")
            return identity | learn_first_dataset(kind, run.seed, run.learning_rate, model_path(out, run), settings)
        return identity | learn_later_datasets(
            run.method, run.learning_rate, dict(run.setting), model_path(out, first), settings
        )
    except Diverged as error:
        return identity | {"failed": str(error)}
    except K1Error as error:
        raise K1Error(f"run {run.name} failed: {error}")


def model_path(out: Path, run: Run) -> Path:
    """Where the model of dataset 1 that `run` learns is kept."""
    return out / "first" / f"{run.name}.pt"


def load_results(path: Path, settings: dict) -> dict:
    """What `path` has recorded so far; raises `K1Error` if that was with other `settings`."""
    if not path.exists():
        return {"settings": settings, "runs": {}}
    try:
        results = json.loads(path.read_text())
        different = [name for name in settings if results["settings"].get(name) != settings[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise K1Error(f"{path} cannot be read as results of a study ({error}); choose another --out")
    if different:
        raise K1Error(f"{path} was recorded with another {', '.join(different)}; choose another --out")
    return results


def execute_all(runs: dict[Run, Run | None], results: dict, out: Path, jobs: int) -> None:
    """Execute the runs that `results` lacks, `jobs` at a time, and write results.json after each.

    `runs` maps each run to the one whose model it continues. A model of
    dataset 1 that is gone is trained again.
    """
    recorded = results["runs"]
    waiting = {
        run: first
        for run, first in runs.items()
        if run.name not in recorded or first is None and not model_path(out, run).exists()
    }
    # A fork of this process would inherit its threads; one of a server that has only imported the libraries does not.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(["k1.study.sequence", "k1.study.plots"])
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run", file=sys.stderr) as bar:
        futures = {pool.submit(execute, run, first, out, results["settings"]): run for run, first in waiting.items()}
        try:
            for future in as_completed(futures):
                recorded[futures[future].name] = future.result()
                write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def execute_in_turn(
    later: dict[Run, str], first_rates: dict[str, list[float]], results: dict, arguments: argparse.Namespace
) -> None:
    """Execute the runs on dataset 1, then those of `later`, each from the best model of dataset 1 of its seed.

    `later` maps each run to the method, `k1` or `baseline`, that learns dataset 1 for it, at each of its `first_rates`.
    """
    firsts = dict.fromkeys((run.seed, script) for run, script in later.items())
    first_runs = [Run(f"first-{script}", seed, rate) for seed, script in firsts for rate in first_rates[script]]
    execute_all(dict.fromkeys(first_runs), results, arguments.out, arguments.jobs)
    runs = {run: best_first(results["runs"], script, run.seed, first_rates[script]) for run, script in later.items()}
    execute_all(runs, results, arguments.out, arguments.jobs)


def best_first(records: dict[str, dict], first: str, seed: int, rates: list[float]) -> Run:
    """Of the runs on dataset 1, the one with the lowest validation loss; raises `K1Error` if none finished."""
    runs = [Run(f"first-{first}", seed, rate) for rate in rates]
    finished = [run for run in runs if "failed" not in records[run.name]]
    if not finished:
        raise K1Error(f"no training on dataset 1 finished: {records[runs[0].name]['failed']}")
    return min(finished, key=lambda run: next(iter(records[run.name]["evaluations"][0].values()))["validation"][0])
