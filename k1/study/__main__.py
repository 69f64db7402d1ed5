"""python3 -m k1.study: sparse updates against other ways to forget less, over learning rates, settings and seeds.

Every run learns all datasets but the first with one method, through the same training
loop as the scripts, from a model of dataset 1 that the methods share. A run that is
recorded in results.json below --out is not repeated, so the study can be stopped
and started again. Each training runs on one thread. The tables go to stdout and
results.md, the plot of forgetting against learning to frontier.png.
"""

from k1.config import PRESETS
from k1.errors import command
from k1.flag_types import positive
from k1.study.frontier import study_figure, study_tables
from k1.study.grid import Run, execute_in_turn, open_results, recorded_settings, show, study_parser
from k1.study.methods import METHODS, require_packages


@command
def main() -> None:
    parser = study_parser("k1.study", __doc__, "models/study")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--learning_rates", nargs="+", type=positive, help="on later datasets (default: each method's own)"
    )
    parser.add_argument(
        "--first_learning_rates", nargs="+", type=positive,
        help="on dataset 1; the best one is used (default: by preset)",
    )  # fmt: skip
    arguments = parser.parse_args()
    require_packages(arguments.methods)
    first_rates = {
        first: arguments.first_learning_rates or [rates[0]]
        for first, rates in PRESETS[arguments.preset].learning_rate.items()
    }
    results = open_results(arguments.out, recorded_settings(arguments))
    later = {
        Run(method, seed, rate, tuple(setting.items())): METHODS[method].script
        for seed in arguments.seeds
        for method in arguments.methods
        for setting in METHODS[method].settings
        for rate in arguments.learning_rates or METHODS[method].learning_rates
    }
    records = execute_in_turn(later, first_rates, results, arguments)
    show(arguments.out, study_tables(records), "frontier.png", study_figure(records))


if __name__ == "__main__":
    main()
