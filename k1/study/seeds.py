"""python3 -m k1.study.seeds: several seeds of the experiment together, from the JSON files that k1.report wrote."""

import json
from collections.abc import Callable
from operator import itemgetter, sub, truediv
from pathlib import Path
from statistics import correlation
from typing import TypeVar

from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS
from k1.report.metrics import KINDS, SHOWN, kinds_of_forgetting, mean, mean_and_interval, new_dataset_loss
from k1.report.tables import Table, rows_of
from k1.report.text import AT_BOTH_TIMES, at_both_times, labels_of

Item = TypeVar("Item")
# By arm the reports' results, one a seed.
Models = dict[str, list[dict]]


def load_reports(paths: list[Path]) -> list[dict]:
    """The reports, one a seed; raises `K1Error` if one cannot be read or they are not of the same experiment."""
    reports, identities = {}, []
    for path in paths:
        try:
            report = json.loads(path.read_text())
            identities.append(
                {
                    "data": [(dataset["name"], dataset["fingerprint"]) for dataset in report["datasets"]],
                    "preset": report["preset"],
                    "learning rates": {arm: report["models"][arm]["learning_rates"] for arm in ARMS},
                }
            )
            if report["seed"] in reports:
                raise K1Error(f"{path} is of the same seed as another report; name each seed once")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise K1Error(
                f"{path} cannot be read as a report of all four arms ({error}); make seeds writes such reports"
            )
        reports[report["seed"]] = report
        if different := [name for name, value in identities[0].items() if identities[-1][name] != value]:
            raise K1Error(f"{path} is of another experiment than {paths[0]}: {', '.join(different)} differ")
    return [*reports.values()]


def mean_of(name: str, metric: Callable[[Item], float], digits: int = 3) -> tuple[str, Callable[[list[Item]], str]]:
    """A column with the mean of `metric` over the runs of an arm, with its interval."""
    return name, lambda runs: mean_and_interval([metric(run) for run in runs], digits)


def format_seeds(reports: list[dict]) -> str:
    """Means over the seeds with 95% intervals, K-1's forgetting as a share of the baseline's, criteria by seed."""
    labels, names = labels_of(reports[0]), [dataset["name"] for dataset in reports[0]["datasets"]]
    models = {arm: [report["models"][arm] for report in reports] for arm in ARMS}
    arms = [(ARMS[arm], runs) for arm, runs in models.items()]
    percent = [
        mean_of(label, lambda run, name=name: run["forgetting_percent"][name], 1)
        for label, name in zip(labels, names[:2])
    ]
    tables = {
        **{f"{title}: {AT_BOTH_TIMES}": at_both_times(score, labels) for score, (title, _, _) in SHOWN.items()},
        "Forgetting in % of the accuracy after the dataset's own stage": [
            *percent, mean_of("Average", lambda run: run["average_forgetting_percent"], 1),
        ],
        "Forgetting in nats per token": [
            mean_of(kind, lambda run, kind=kind: kinds_of_forgetting(run["loss_matrix"])[kind]) for kind in KINDS
        ],
    }  # fmt: skip
    criteria = [["Criterion", *(f"seed {report['seed']}" for report in reports)]]
    for items in zip(*(report["criteria"] for report in reports)):
        criteria.append([items[0]["criterion"], *("met" if item["met"] else "NOT MET" for item in items)])
    sections = [
        *(Table(caption, rows_of("Model", arms, columns)) for caption, columns in tables.items()),
        against_baseline(models, labels),
        two_by_two(models),
        predicted_and_real(models),
        Table(f"The criteria of the report ({len(reports)} seeds)", criteria),
    ]
    return "\n\n".join(map(str, sections))


def against_baseline(models: Models, labels: list[str]) -> Table:
    """Each model but the baseline against it, seed by seed, in nats per token."""
    # Of each seed the matrices of loss of both.
    pairs = [
        (ARMS[arm], [(run["loss_matrix"], dense["loss_matrix"]) for run, dense in zip(runs, models["baseline"])])
        for arm, runs in models.items()
        if arm != "baseline"
    ]
    columns = [
        mean_of(kind, lambda pair, kind=kind: truediv(*(kinds_of_forgetting(loss)[kind] for loss in pair)))
        for kind in KINDS
    ] + [
        mean_of(f"new loss of {label}", lambda pair, number=number: sub(*(loss[number + 1][number] for loss in pair)))
        for number, label in enumerate(labels[1:], start=1)
    ]
    caption = (
        "Forgetting in nats as a share of the baseline's, and loss on datasets 2 and 3 after their own stage less the "
        "baseline's; seed by seed, means"
    )
    return Table(caption, rows_of("Model", pairs, columns))


def two_by_two(models: Models) -> Table:
    """The four arms, then main effects and interaction, seed by seed, means with 95% intervals.

    The effect of the 51% is the mean of (51% - 100%) over both
    columns, that of rehearsal the mean of (rehearsal - none) over both rows, and the interaction is how much
    more the 51% do with rehearsal than without.
    """
    quantities = {
        "average forgetting, %": lambda run: run["average_forgetting_percent"],
        "mean of the three kinds of forgetting, nats": lambda run: mean(
            list(kinds_of_forgetting(run["loss_matrix"]).values())
        ),
        "loss on new datasets, nats": lambda run: new_dataset_loss(run["loss_matrix"]),
        "mean loss at the end, nats": lambda run: run["mean_final_loss"],
    }
    # Of each seed the quantity of the four arms: dense, sparse, rehearsal, both.
    seeds = [
        (title, list(zip(*([quantity(run) for run in models[arm]] for arm in ARMS))))
        for title, quantity in quantities.items()
    ]
    columns = [
        *(mean_of(label, itemgetter(place)) for place, label in enumerate(ARMS.values())),
        mean_of("51% - 100%", lambda four: ((four[1] - four[0]) + (four[3] - four[2])) / 2),
        mean_of("rehearsal - none", lambda four: ((four[2] - four[0]) + (four[3] - four[1])) / 2),
        mean_of("interaction", lambda four: (four[3] - four[2]) - (four[1] - four[0])),
    ]
    caption = "Two by two: what the 51% do, what rehearsal does, and what they do together"
    return Table(caption, rows_of("", seeds, columns))


def predicted_and_real(models: Models) -> Table:
    """Predicted forgetting beside the real rise of the loss on test text in the same stage, of all runs that rehearse.

    In nats per token, means over the seeds.
    """
    rows, pairs = [["Model", "Stage", "Dataset", "Predicted", "Real"]], []
    for arm, runs in models.items():
        stages = runs[0]["predicted_forgetting"]
        for stage, dataset in [(stage, number) for stage, found in enumerate(stages) for number in range(len(found))]:
            predicted = [run["predicted_forgetting"][stage][dataset] for run in runs]
            real = [run["loss_matrix"][stage + 1][dataset] - run["loss_matrix"][stage][dataset] for run in runs]
            pairs += zip(predicted, real)
            rows.append([ARMS[arm], str(stage + 1), str(dataset + 1), *map(mean_and_interval, (predicted, real))])
    error = mean([abs(predicted - real) for predicted, real in pairs])
    caption = (
        "Predicted forgetting, the divergence on the model's own text, beside the real rise of the loss in the same "
        f"stage, in nats per token; they are {error:.3f} apart in the mean of {len(pairs)} pairs, their correlation is "
        f"{correlation(*zip(*pairs)):.2f}"
    )
    return Table(caption, rows)


@command
def main() -> None:
    parser = module_parser("k1.study.seeds", __doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE", help="written by python3 -m k1.report --json")
    print(format_seeds(load_reports(parser.parse_args().reports)))


if __name__ == "__main__":
    main()
