"""Runs that are recorded and not repeated: the folder of a study, and the execution of what it lacks."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure
from tqdm import tqdm

from k1.errors import Diverged, K1Error
from k1.files import lock, write_text
from k1.report.plots import write_figure
from k1.study.methods import METHODS
from k1.study.sequence import learn_first_dataset, learn_later_datasets

Key, Result = TypeVar("Key"), TypeVar("Result")


def open_results(out: Path, settings: dict) -> dict:
    """What the folder `out` has recorded so far; the folder is made, and locked against other processes.

    Raises `K1Error` if it was recorded with other `settings`, or the folder cannot be made.
    """
    path = out / "results.json"
    results = {"settings": settings, "runs": {}}
    try:
        if path.exists():
            results = json.loads(path.read_text())
        different = [name for name in settings if results["settings"].get(name) != settings[name]]
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, LookupError) as error:
        raise K1Error(f"{path} cannot be read or written as results of a study ({error}); choose another --out")
    if different:
        raise K1Error(f"{path} was recorded with another {', '.join(different)}; choose another --out")
    lock(path)
    return results


def write_results(results: dict, out: Path) -> None:
    """Write what is recorded so far into the folder `out`."""
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")


def show(out: Path, tables: str, picture: str, figure: Figure) -> None:
    """Write `tables` to results.md and to stdout, and `figure` to the file `picture` of the folder `out`."""
    write_text(out / "results.md", tables + "\n")
    write_figure(out / picture, figure)
    print(tables)


def name_of(run: dict) -> str:
    """How a run, a method at one `seed`, `learning_rate` and `setting` of its dial, is called."""
    setting = "".join(f"-{name}{value:g}" for name, value in run["setting"].items())
    return f"{run['method']}-seed{run['seed']}-{run['learning_rate']:g}{setting}"


def in_processes(jobs: int, tasks: dict[Key, Callable[[], Result]]) -> Iterator[tuple[Key, Result]]:
    """What the `tasks` return, each with its key and as it ends; `jobs` are done at a time."""
    # A fork would inherit the threads of this process.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(task): key for key, task in tasks.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def execute(run: dict, first: Path, settings: dict) -> dict:
    """The record of `run`; a training that diverges is recorded as such, any other `K1Error` names the run."""
    try:
        return run | learn_later_datasets(run, first, settings)
    except Diverged as error:
        return run | {"failed": str(error)}
    except K1Error as error:
        raise K1Error(f"run {name_of(run)} failed: {error}")


def execute_all(runs: list[dict], results: dict, out: Path, jobs: int) -> list[dict]:
    """Execute the `runs` that `results` lacks, and record each as it ends; before them what they continue.

    That are models of dataset 1, one a seed and script, at the preset's learning rate. Returns the records of the
    runs that finished, and names the others on stderr; raises `K1Error` if none did.
    """
    settings, records, names = results["settings"], results["runs"], list(map(name_of, runs))
    waiting, firsts = {}, {}
    for name, run in zip(names, runs):
        if name not in records:
            script, seed = METHODS[run["method"]].script, run["seed"]
            first = out / "first" / f"{script}-seed{seed}.pt"
            waiting[name] = partial(execute, run, first, settings)
            if not first.exists():
                firsts[first] = partial(learn_first_dataset, script, seed, first, settings)
    (out / "first").mkdir(exist_ok=True)
    list(in_processes(jobs, firsts))
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run", file=sys.stderr) as bar:
        for name, record in in_processes(jobs, waiting):
            records[name] = record
            write_results(results, out)
            bar.update()
    for name in names:
        if "failed" in records[name]:
            print(f"warning: {name} is left out: {records[name]['failed']}", file=sys.stderr)
    if finished := [records[name] for name in names if "failed" not in records[name]]:
        return finished
    raise K1Error("no run finished; choose lower --learning_rates")
