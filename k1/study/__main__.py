"""python3 -m k1.study: sparse updates and rehearsal against other ways to forget less, over rates and seeds.

Every run learns all datasets but the first with one method, through the same training
loop as the scripts, from a model of dataset 1 that the methods share. --grid chooses:

  study   other methods, each with and without rehearsal, at several learning rates
  map     shares of updated parameters, shares of rehearsal, and policies
  stream  the four arms at the preset's learning rates, for any number of datasets

A run that is recorded in results.json below --out is not repeated, so that it can be
stopped and started again. Each training runs on one thread. The tables, each method at
its best setting on validation text, go to stdout and results.md, forgetting against
learning to frontier.png, and accuracy stage by stage, of the arms, to accuracy.png.
"""

import json
from math import inf
from pathlib import Path

from k1.config import PRESETS
from k1.data.loader import require_distinct
from k1.errors import UsageError, command, module_parser
from k1.flag_types import above_zero, at_least, checked, positive
from k1.report.plots import accuracy_figure, write_figure
from k1.study.frontier import accuracies, study_figure, study_tables
from k1.study.grid import execute_all, open_results, read, show
from k1.study.methods import GRIDS, METHODS, require_packages


@command
def main() -> None:
    parser = module_parser("k1.study", __doc__)
    parser.add_argument("--grid", choices=list(GRIDS), default="study", help="(default: %(default)s)")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), metavar="METHOD",
        help=f"in place of the grid's, of: {', '.join(METHODS)}",
    )  # fmt: skip
    parser.add_argument(
        "--learning_rates", nargs="+", type=positive, help="on later datasets (default: each method's own)"
    )
    parser.add_argument("--seeds", nargs="+", type=checked(int, at_least(0, inf)), default=[0, 1, 2])
    parser.add_argument("--preset", choices=list(PRESETS), default="study")
    parser.add_argument("--data_source", choices=["auto", "hub", "bundled"], default="bundled")
    parser.add_argument(
        "--dataset_names", nargs="+", default=["wikitext", "code", "science"], metavar="NAME",
        help="two or more: preset names, hub ids or local paths, in order (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=above_zero, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder (default: models/GRID)")
    arguments = parser.parse_args()
    if len(arguments.dataset_names) < 2:
        raise UsageError("--dataset_names takes at least two names: nothing is forgotten if nothing follows")
    methods = arguments.methods or GRIDS[arguments.grid]
    require_packages(methods)
    require_distinct(arguments.dataset_names)
    preset = vars(PRESETS[arguments.preset])
    settings = {**preset, "preset": arguments.preset, "data_source": arguments.data_source}
    # All texts now: a name that is wrong should not show after hours of training.
    texts = [read(name, settings) for name in arguments.dataset_names]
    require_distinct([text.name for text in texts])
    settings |= {"dataset_names": arguments.dataset_names, "text": [text.fingerprint for text in texts]}
    out = arguments.out or Path("models", arguments.grid)
    results = open_results(out, json.loads(json.dumps(settings)))
    fixed = {arm: later for arm, (_, *later) in preset["learning_rate"].items() if arguments.grid == "stream"}
    runs = [
        {"method": name, "seed": seed, "learning_rate": rate, "setting": setting}
        for seed in arguments.seeds
        for name in methods
        for setting in METHODS[name].settings
        for rate in arguments.learning_rates or fixed.get(name, METHODS[name].rates)
    ]
    records = execute_all(runs, results, out, arguments.jobs)
    show(out, study_tables(records), "frontier.png", study_figure(records))
    arms = accuracies(records)
    if arms["models"]:
        write_figure(out / "accuracy.png", accuracy_figure(arms))


if __name__ == "__main__":
    main()
