"""python3 -m k1.study: sparse updates against other ways to forget less, over learning rates, settings and seeds.

Every run learns datasets 2 and 3 with one method, through the same training loop
as the scripts, from a model of dataset 1 that the methods share. A run that is
recorded in results.json below --out is not repeated, so the study can be stopped
and started again. Each training runs on one thread. The tables go to stdout and
results.md, the plot of forgetting against learning to frontier.png.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from k1.config import PRESETS
from k1.errors import K1Error, command
from k1.files import lock, write_text
from k1.frontier import study_tables
from k1.methods import METHODS
from k1.plots import plot_frontier
from k1.sequence import learn_first_dataset, learn_later_datasets


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
    except K1Error as error:
        if "diverged" not in str(error):
            raise K1Error(f"run {run.name} failed: {error}")
        return identity | {"failed": str(error)}


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

    `runs` maps each run to the one whose model it goes on from. A model of
    dataset 1 that is gone is trained again.
    """
    recorded = results["runs"]
    waiting = {
        run: first
        for run, first in runs.items()
        if run.name not in recorded or first is None and not model_path(out, run).exists()
    }
    # Fresh processes: a forked one would inherit the threads of this one.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run", file=sys.stderr) as bar:
        futures = {pool.submit(execute, run, first, out, results["settings"]): run for run, first in waiting.items()}
        try:
            for future in as_completed(futures):
                recorded[futures[future].name] = future.result()
                write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def best_first(records: dict[str, dict], first: str, seed: int, rates: list[float]) -> Run:
    """Of the runs on dataset 1, the one with the lowest validation loss; raises `K1Error` if none finished."""
    runs = [Run(f"first-{first}", seed, rate) for rate in rates]
    finished = [run for run in runs if "failed" not in records[run.name]]
    if not finished:
        raise K1Error(f"no training on dataset 1 finished: {records[runs[0].name]['failed']}")
    return min(finished, key=lambda run: next(iter(records[run.name]["evaluations"][0].values()))["validation"][0])


def parse_study_arguments() -> argparse.Namespace:
    """The command line of the study."""
    parser = argparse.ArgumentParser(
        prog="python3 -m k1.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, help="on datasets 2 and 3 (default: each method's own)"
    )
    parser.add_argument(
        "--first_learning_rates", nargs="+", type=float, help="on dataset 1; the best one is used (default: by preset)"
    )
    parser.add_argument("--consolidation", nargs="+", type=float, help="strengths (default: each method's own)")
    parser.add_argument("--preset", choices=list(PRESETS), default="study")
    parser.add_argument("--dataset_names", nargs=3, default=["wikitext", "code", "science"], metavar="NAME")
    parser.add_argument("--data_source", choices=["auto", "hub", "bundled"], default="bundled")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("models/study"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.jobs < 1 or min(arguments.seeds) < 0:
        parser.error("--jobs must be at least 1 and --seeds at least 0")
    return arguments


def later_runs(arguments: argparse.Namespace, method: str, seed: int) -> list[Run]:
    """Every run of `method` on datasets 2 and 3 with `seed`."""
    settings = METHODS[method].settings
    if arguments.consolidation and "consolidation" in METHODS[method].dial:
        settings = [{"consolidation": value} for value in arguments.consolidation]
    return [
        Run(method, seed, rate, tuple(setting.items()))
        for setting in settings
        for rate in arguments.learning_rates or METHODS[method].learning_rates
    ]


@command
def main() -> None:
    arguments = parse_study_arguments()
    shape = asdict(PRESETS[arguments.preset])
    settings = {"preset": arguments.preset, **shape, **{
        name: getattr(arguments, name) for name in ("dataset_names", "data_source")
    }}  # fmt: skip
    # Learning rates and strengths of consolidation belong to the runs, so that more of them can be added later.
    first_rates = {
        first: arguments.first_learning_rates or [rates[0]] for first, rates in settings.pop("learning_rates").items()
    }
    del settings["consolidation"]
    settings = json.loads(json.dumps(settings))
    results = load_results(arguments.out / "results.json", settings)
    (arguments.out / "first").mkdir(parents=True, exist_ok=True)
    lock(arguments.out / "results.json")

    firsts = dict.fromkeys(METHODS[method].first for method in arguments.methods)
    first_runs = [
        Run(f"first-{first}", seed, rate) for seed in arguments.seeds for first in firsts for rate in first_rates[first]
    ]
    execute_all(dict.fromkeys(first_runs), results, arguments.out, arguments.jobs)
    runs = {
        run: best_first(results["runs"], METHODS[method].first, seed, first_rates[METHODS[method].first])
        for seed in arguments.seeds
        for method in arguments.methods
        for run in later_runs(arguments, method, seed)
    }
    execute_all(runs, results, arguments.out, arguments.jobs)

    tables = study_tables(results["runs"])
    write_text(arguments.out / "results.md", tables + "\n")
    plot_frontier(results["runs"], arguments.out / "frontier.png")
    print(tables)


if __name__ == "__main__":
    main()
