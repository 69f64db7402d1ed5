"""python3 -m k1.study: sparse updates against other ways to forget less, over learning rates, settings and seeds.

Every run learns datasets 2 and 3 with one method, through the same training loop
as the scripts, from a model of dataset 1 that the methods share. A run that is
recorded in results.json below --out is not repeated, so the study can be stopped
and started again. Each training runs on one thread. The tables go to stdout and
results.md, the plot of forgetting against learning to frontier.png.
"""

import argparse

from k1.config import PRESETS
from k1.errors import UsageError, command
from k1.experiment import STAGES
from k1.files import write_text
from k1.study.commands import open_results, parse, recorded_settings, study_parser
from k1.study.execution import Run, execute_in_turn
from k1.study.methods import METHODS, require_packages
from k1.study.plots import plot_frontier
from k1.study.tables import study_tables


def parse_study_arguments() -> argparse.Namespace:
    """The command line of the study."""
    parser = study_parser("k1.study", __doc__, "models/study")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, help="on datasets 2 and 3 (default: each method's own)"
    )
    parser.add_argument(
        "--first_learning_rates", nargs="+", type=float, help="on dataset 1; the best one is used (default: by preset)"
    )
    parser.add_argument(
        "--dataset_names", nargs="+", default=["wikitext", "code", "science"], metavar="NAME",
        help="the three datasets, in order; more of them: python3 -m k1.study.stream",
    )  # fmt: skip
    arguments = parse(parser)
    if len(arguments.dataset_names) != STAGES:
        raise UsageError(
            f"--dataset_names takes {STAGES} names, not {len(arguments.dataset_names)}; "
            "python3 -m k1.study.stream learns any number of datasets"
        )
    return arguments


def later_runs(arguments: argparse.Namespace, method: str, seed: int) -> list[Run]:
    """Every run of `method` on datasets 2 and 3 with `seed`."""
    return [
        Run(method, seed, rate, tuple(setting.items()))
        for setting in METHODS[method].settings
        for rate in arguments.learning_rates or METHODS[method].learning_rates
    ]


@command
def main() -> None:
    arguments = parse_study_arguments()
    require_packages(arguments.methods)
    settings = recorded_settings(arguments)
    first_rates = {
        first: arguments.first_learning_rates or [rates[0]]
        for first, rates in PRESETS[arguments.preset].learning_rate.items()
    }
    results = open_results(arguments.out, settings)

    later = {
        run: METHODS[method].script
        for seed in arguments.seeds
        for method in arguments.methods
        for run in later_runs(arguments, method, seed)
    }
    execute_in_turn(later, first_rates, results, arguments)

    tables = study_tables(results["runs"])
    write_text(arguments.out / "results.md", tables + "\n")
    plot_frontier(results["runs"], arguments.out / "frontier.png")
    print(tables)


if __name__ == "__main__":
    main()
