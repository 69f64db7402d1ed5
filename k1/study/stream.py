"""python3 -m k1.study.stream: any number of datasets, learned one after another by the arms of the experiment.

The four arms, each at one learning rate, over several seeds. A run that is recorded
in results.json below --out is not repeated, so the stream can be stopped and started
again. Each training runs on one thread. The tables go to stdout and results.md, the
picture of all datasets to stream.png.
"""

import argparse
import sys
from math import inf
from pathlib import Path

from k1.config import PRESETS
from k1.errors import K1Error, UsageError, command
from k1.experiment import ARMS
from k1.files import write_text
from k1.report.plots import write_figure
from k1.study.commands import label_of, open_results, parse, recorded_settings, study_parser
from k1.study.execution import Run, execute_in_turn
from k1.study.forgetting import stream_tables
from k1.study.frontier import Point, points_of
from k1.study.methods import METHODS
from k1.study.plots import stream_figure
from k1.study.sequence import data_loader
from k1.study.unseen import CORPORA

UNSEEN = Path("models/unseen")
DATASETS = ["wikitext", "code", "science", *(str(UNSEEN / f"{name}.jsonl") for name in CORPORA)]


def parse_stream_arguments() -> argparse.Namespace:
    """The command line of the stream; `learning_rates` becomes a dictionary by method."""
    parser = study_parser("k1.study.stream", __doc__, "models/stream")
    parser.add_argument(
        "--dataset_names", nargs="+", default=DATASETS, metavar="NAME",
        help="two or more: preset names, hub ids or local paths, in order (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--learning_rates", nargs=len(ARMS), type=float, metavar=tuple(name.upper() for name in ARMS),
        help="on all datasets but the first, one for each arm (default: by preset)",
    )  # fmt: skip
    arguments = parse(parser)
    if len(arguments.dataset_names) < 2:
        raise UsageError("--dataset_names takes at least two names: nothing is forgotten if nothing follows")
    if arguments.learning_rates and not all(0 < rate < inf for rate in arguments.learning_rates):
        raise UsageError("--learning_rates must be positive numbers")
    presets = PRESETS[arguments.preset].learning_rate
    rates = arguments.learning_rates or [presets[arm][1] for arm in ARMS]
    arguments.learning_rates = dict(zip(ARMS, rates))
    return arguments


def stream_settings(arguments: argparse.Namespace) -> dict:
    """What all runs of the stream share, with the fingerprint of each text; raises `K1Error` if one is missing."""
    settings = recorded_settings(arguments)
    texts = {}
    # All of them now: a name that is wrong should not show after hours of training.
    for name in arguments.dataset_names:
        if Path(name).parent == UNSEEN and not Path(name).exists():
            raise K1Error(f"{name} is missing; write it with: python3 -m k1.study.unseen {UNSEEN}")
        texts[label_of(name)] = data_loader(name, settings).fingerprint
    return {**settings, "text": texts}


def run_stream(arguments: argparse.Namespace, results: dict) -> dict[str, Point]:
    """Execute the runs that `results` lacks; returns the finished ones of each arm that has any.

    A run that diverged is named on stderr; raises `K1Error` if no run finished.
    """
    first_rates = {first: rates[:1] for first, rates in PRESETS[arguments.preset].learning_rate.items()}
    later = {
        Run(arm, seed, rate): METHODS[arm].script
        for seed in arguments.seeds
        for arm, rate in arguments.learning_rates.items()
    }
    execute_in_turn(later, first_rates, results, arguments)

    # Runs at other learning rates or seeds may be recorded too.
    records = {run.name: results["runs"][run.name] for run in later}
    for name, record in records.items():
        if "failed" in record:
            print(f"warning: {name} is left out: {record['failed']}", file=sys.stderr)
    arms = {arm: points[0] for arm, points in points_of(records).items()}
    if not arms:
        raise K1Error("no run finished; choose lower --learning_rates")
    return arms


@command
def main() -> None:
    arguments = parse_stream_arguments()
    results = open_results(arguments.out, stream_settings(arguments))
    arms = run_stream(arguments, results)
    tables = stream_tables(arms)
    write_text(arguments.out / "results.md", tables + "\n")
    write_figure(arguments.out / "stream.png", stream_figure(arms), dpi=120)
    print(tables)


if __name__ == "__main__":
    main()
