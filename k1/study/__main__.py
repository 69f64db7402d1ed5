"""python3 -m k1.study: sparse updates against other ways to forget less, over learning rates, settings and seeds.

Every run learns datasets 2 and 3 with one method, through the same training loop
as the scripts, from a model of dataset 1 that the methods share. A run that is
recorded in results.json below --out is not repeated, so the study can be stopped
and started again. Each training runs on one thread. The tables go to stdout and
results.md, the plot of forgetting against learning to frontier.png.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from k1.errors import command
from k1.files import lock, write_text
from k1.presets import PRESETS
from k1.study.execution import Run, best_first, execute_all, load_results
from k1.study.methods import METHODS, require_packages
from k1.study.plots import plot_frontier
from k1.study.tables import study_tables


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
    require_packages(arguments.methods)
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
