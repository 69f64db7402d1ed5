"""python3 -m k1.study: tune the learning rates of both methods through the same scripts a user runs.

First every learning rate is tried on dataset 1; then every learning rate on
datasets 2 and 3, from the stage-1 model that was best. Every run has a folder of
its own below --out; a run that is recorded in results.json is not repeated, so
the study can be stopped and started again. Each training runs on one thread.
The tables go to stdout, the plot of forgetting against learning to frontier.png.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile

from tqdm import tqdm

from k1.checkpoint import FILES, SCRIPTS, load_checkpoint
from k1.config import PRESETS
from k1.errors import K1Error, command
from k1.files import write_atomically
from k1.metrics import accuracy_matrix, average_forgetting_percent, mean
from k1.plots import plot_frontier
from k1.tables import LABELS, format_table

ROOT = Path(__file__).resolve().parent.parent

# The baseline's stages are those of K-1 with every parameter selected, to the bit (a test compares them).
METHOD_FLAGS = {"baseline": ["--selection", "all"], "k1": []}


@dataclass(frozen=True)
class Run:
    """One training of stage 1, or of stages 2 and 3 after a stage 1 with learning rate `first_rate`."""

    method: str
    stages: tuple[int, ...]
    learning_rate: float
    first_rate: float | None = None

    @property
    def name(self) -> str:
        after = f"-after-{self.first_rate:g}" if self.first_rate else ""
        return f"{self.method}-stage{''.join(map(str, self.stages))}-{self.learning_rate:g}{after}"

    def execute(self, out: Path, settings: list[str]) -> dict:
        """Run the scripts of the stages and return the record of the last, or of the divergence.

        Raises `K1Error` when a script fails for another reason.
        """
        folder = out / "runs" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        if self.first_rate:
            first = Run(self.method, (1,), self.first_rate)
            checkpoint = out / "runs" / first.name / FILES["k1"][0]
            if not checkpoint.exists():
                first.execute(out, settings)
            copyfile(checkpoint, folder / checkpoint.name)
        for stage in self.stages:
            script = SCRIPTS["k1"][stage - 1]
            flags = ["--learning_rate", str(self.learning_rate), "--models_dir", str(folder), "--overwrite"]
            flags += settings + (METHOD_FLAGS[self.method] if stage == 1 else [])
            finished = subprocess.run([sys.executable, ROOT / script, *flags], capture_output=True, text=True)
            if finished.returncode:
                reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
                if "diverged" not in reason:
                    raise K1Error(f"run {self.name} failed: {reason}; start the study again to go on")
                return {"method": self.method, "learning_rate": self.learning_rate, "failed": reason}
        return record_of(self, folder / FILES["k1"][self.stages[-1] - 1])


def record_of(run: Run, path: Path) -> dict:
    """What the study keeps of a run: validation figures after each dataset's own stage and at the end."""
    checkpoint = load_checkpoint(path, "k1")
    names = [dataset["name"] for dataset in checkpoint.datasets]
    final = {name: checkpoint.evaluations[-1][name]["validation"]["loss"] for name in names}
    return {
        "method": run.method,
        "learning_rate": run.learning_rate,
        "own_loss": {name: checkpoint.evaluations[i][name]["validation"]["loss"] for i, name in enumerate(names)},
        "final_loss": final,
        "mean_final_loss": mean(list(final.values())),
        "average_forgetting_percent": (
            average_forgetting_percent(accuracy_matrix(checkpoint, "validation")) if len(names) > 1 else None
        ),
    }


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


def execute_all(runs: list[Run], results: dict, out: Path, settings: list[str], jobs: int) -> list[dict]:
    """Execute the runs that `results` lacks, `jobs` at a time, and write results.json after each.

    Returns the records of all `runs`, in their order.
    """
    recorded = results["runs"]
    waiting = [run for run in runs if run.name not in recorded]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run") as bar:
        for run, record in pool.map(lambda run: (run, run.execute(out, settings)), waiting):
            recorded[run.name] = record
            text = json.dumps(results, indent=2) + "\n"
            write_atomically(out / "results.json", lambda file: file.write(text.encode()))
            bar.update()
    return [recorded[run.name] for run in runs]


def by_method(records: list[dict]) -> dict[str, list[dict]]:
    """The records of each method, in their order."""
    grouped: dict[str, list[dict]] = {}
    for record in records:
        grouped.setdefault(record["method"], []).append(record)
    return grouped


def best_of(records: list[dict]) -> dict:
    """The record with the lowest mean validation loss at the end; raises `K1Error` if all runs failed."""
    finished = [record for record in records if "failed" not in record]
    if not finished:
        raise K1Error(f"no run finished; the first said: {records[0]['failed']}")
    return min(finished, key=lambda record: record["mean_final_loss"])


def format_study(first: dict[str, list[dict]], later: dict[str, list[dict]]) -> str:
    """The two tables of the study as Markdown; the chosen learning rate of each method is marked `*`."""

    def rows(records: dict[str, list[dict]], cells) -> list[list[str]]:
        table = []
        for method, method_records in records.items():
            best = best_of(method_records)
            for record in method_records:
                mark = "*" if record is best else ""
                shown = ["diverged"] if "failed" in record else cells(record)
                table.append([LABELS[method], f"{record['learning_rate']:g}{mark}", *shown])
        width = max(len(row) for row in table)
        return [row + [""] * (width - len(row)) for row in table]

    def sequence(record: dict) -> list[str]:
        final = record["final_loss"]
        own = [f"{record['own_loss'][name]:.3f} -> {loss:.3f}" for name, loss in final.items()]
        return [*own, f"{record['mean_final_loss']:.3f}", f"{record['average_forgetting_percent']:.1f}"]

    names = list(best_of(next(iter(later.values())))["final_loss"])
    head = ["Method", "Learning rate"]
    return "\n\n".join(
        [
            f"Dataset 1 ({names[0]}): validation loss in nats per token",
            format_table([[*head, "Loss"], *rows(first, lambda record: [f"{record['mean_final_loss']:.3f}"])]),
            "Datasets 2 and 3, from the best model of dataset 1: validation loss in nats per token, "
            "after the dataset's own stage -> at the end",
            format_table([[*head, *names, "Mean at the end", "Forgetting %"], *rows(later, sequence)]),
        ]
    )


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m k1.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHOD_FLAGS), default=list(METHOD_FLAGS))
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[1e-3, 2e-3, 3e-3, 4e-3, 6e-3])
    parser.add_argument("--later_learning_rates", nargs="+", type=float, default=[2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--preset", choices=["smoke", "quick", "full"], default="quick")
    parser.add_argument("--data_source", choices=["auto", "hub", "bundled"], default="bundled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("models/sweep"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    flags = ["--threads", "1"]
    for name in ("preset", "data_source", "seed"):
        flags += [f"--{name}", str(getattr(arguments, name))]
    shape = asdict(PRESETS[arguments.preset])
    del shape["learning_rates"]
    settings = {**shape, "data_source": arguments.data_source, "seed": arguments.seed}
    settings = json.loads(json.dumps(settings))
    results = load_results(arguments.out / "results.json", settings)
    first_runs = [Run(method, (1,), rate) for method in arguments.methods for rate in arguments.learning_rates]
    first = by_method(execute_all(first_runs, results, arguments.out, flags, arguments.jobs))
    later_runs = [
        Run(method, (2, 3), rate, first_rate=best_of(first[method])["learning_rate"])
        for method in arguments.methods
        for rate in arguments.later_learning_rates
    ]
    later = by_method(execute_all(later_runs, results, arguments.out, flags, arguments.jobs))
    tables = format_study(first, later)
    plot_frontier(later, arguments.out / "frontier.png")
    print(tables)


if __name__ == "__main__":
    main()
