"""Runs that are recorded and not repeated: the flags, the folder and the execution that the studies share."""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from math import inf
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from k1.config import PRESETS
from k1.errors import Diverged, K1Error, UsageError, module_parser
from k1.files import lock, write_text
from k1.flag_types import above_zero, at_least, checked
from k1.report.plots import write_figure
from k1.report.tables import dataset_label
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

    def model_path(self, out: Path) -> Path:
        """Where the model of dataset 1 that this run learns is kept."""
        return out / "first" / f"{self.name}.pt"


def study_parser(
    module: str, description: str, out: str, dataset_names: Sequence[str] = ("wikitext", "code", "science")
) -> argparse.ArgumentParser:
    """The command line of `module` with the flags that all of these commands have; the last two are defaults."""
    parser = module_parser(module, description)
    seed = checked(int, at_least(0, inf))
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2])
    parser.add_argument("--preset", choices=list(PRESETS), default="study")
    parser.add_argument("--data_source", choices=["auto", "hub", "bundled"], default="bundled")
    parser.add_argument(
        "--dataset_names", nargs="+", default=dataset_names, metavar="NAME",
        help="two or more: preset names, hub ids or local paths, in order (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=above_zero, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder (default: %(default)s)")
    return parser


def label_of(name: str) -> str:
    """How the dataset that a user calls `name` is called in records and tables: a local one by its file name."""
    path = Path(name).expanduser()
    return dataset_label(str(path.resolve())) if path.exists() else name


def recorded_settings(arguments: argparse.Namespace) -> dict:
    """What all runs of a command share, as plain values: the preset's shape, the datasets and where they come from.

    Learning rates are not in it: they belong to the runs. Raises `UsageError` if there are not two datasets, or two
    have the same name.
    """
    if len(arguments.dataset_names) < 2:
        raise UsageError("--dataset_names takes at least two names: nothing is forgotten if nothing follows")
    labels = [label_of(name) for name in arguments.dataset_names]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"--dataset_names has {repeated[0]} twice; name different datasets, files by different names")
    shape = vars(PRESETS[arguments.preset]).copy()
    del shape["learning_rate"]
    chosen = {name: getattr(arguments, name) for name in ("dataset_names", "data_source")}
    return json.loads(json.dumps({"preset": arguments.preset, **shape, **chosen}))


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


def execute(run: Run, first: Run | None, out: Path, settings: dict) -> dict:
    """Train and evaluate `run` in this process, from the model that the run `first` left; returns its record.

    A training that diverges is recorded as such; raises `K1Error` for any other failure.
    """
    identity = {**asdict(run), "setting": dict(run.setting)}
    try:
        if first is None:
            kind = run.method.removeprefix("first-")
            return identity | learn_first_dataset(kind, run.seed, run.learning_rate, run.model_path(out), settings)
        return identity | learn_later_datasets(
            run.method, run.learning_rate, dict(run.setting), first.model_path(out), settings
        )
    except Diverged as error:
        return identity | {"failed": str(error)}
    except K1Error as error:
        raise K1Error(f"run {run.name} failed: {error}")


def execute_all(runs: dict[Run, Run | None], results: dict, out: Path, jobs: int) -> None:
    """Execute the runs that `results` lacks, `jobs` at a time, and record each as it ends.

    `runs` maps each run to the one whose model it continues. A model of dataset 1 that is gone is trained again.
    """
    (out / "first").mkdir(exist_ok=True)
    waiting = {
        run: first
        for run, first in runs.items()
        if run.name not in results["runs"] or first is None and not run.model_path(out).exists()
    }
    # A fork of this process would inherit its threads; one of a server that has only imported the libraries does not.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(["k1.study.grid"])
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run", file=sys.stderr) as bar:
        futures = {pool.submit(execute, run, first, out, results["settings"]): run for run, first in waiting.items()}
        try:
            for future in as_completed(futures):
                results["runs"][futures[future].name] = future.result()
                write_results(results, out)
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def execute_in_turn(
    later: dict[Run, str], first_rates: dict[str, list[float]], results: dict, arguments: argparse.Namespace
) -> dict[str, dict]:
    """Execute the runs on dataset 1, then those of `later`, each from the best model of dataset 1 of its seed.

    `later` maps each run to the method, `k1` or `baseline`, that learns dataset 1 for it, at each of its `first_rates`.
    Returns the records of those of `later` that finished, and names the others on stderr; raises `K1Error` if none did.
    """
    records = results["runs"]
    firsts = {
        (seed, script): [Run(f"first-{script}", seed, rate) for rate in first_rates[script]]
        for seed, script in dict.fromkeys((run.seed, script) for run, script in later.items())
    }
    execute_all(dict.fromkeys(run for runs in firsts.values() for run in runs), results, arguments.out, arguments.jobs)
    best = {key: min(runs, key=lambda run: validation_loss(records[run.name])) for key, runs in firsts.items()}
    for run in best.values():
        if "failed" in records[run.name]:
            raise K1Error(f"no training on dataset 1 finished: {records[run.name]['failed']}")
    execute_all({run: best[run.seed, script] for run, script in later.items()}, results, arguments.out, arguments.jobs)
    for run in later:
        if "failed" in records[run.name]:
            print(f"warning: {run.name} is left out: {records[run.name]['failed']}", file=sys.stderr)
    if finished := {run.name: records[run.name] for run in later if "failed" not in records[run.name]}:
        return finished
    raise K1Error("no run finished; choose lower --learning_rates")


def validation_loss(record: dict) -> float:
    """Nats per token of dataset 1 after stage 1 on validation text; infinite if the training failed."""
    if "failed" in record:
        return float("inf")
    return next(iter(record["evaluations"][0].values()))["validation"][0]
