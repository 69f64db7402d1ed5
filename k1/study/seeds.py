"""python3 -m k1.study.seeds: several seeds of the experiment together, from the JSON files that k1.report wrote."""

import json
from collections.abc import Callable
from functools import partial
from operator import itemgetter, sub, truediv
from pathlib import Path

import numpy as np

from k1.errors import K1Error, command, module_parser
from k1.experiment import ARMS
from k1.report.metrics import keeps_quality, mean, mean_and_interval, new_dataset_loss
from k1.report.tables import (
    AT_BOTH_TIMES,
    SHOWN,
    Table,
    at_both_times,
    entry,
    forgetting_columns,
    labels_of,
    mean_of,
    rows_of,
)

# By arm the reports' results, one a seed.
Models = dict[str, list[dict]]
# By name a kind of forgetting of a run, in nats per token.
Kinds = dict[str, Callable[[dict], float]]
# What four arms, in the order of `ARMS`, say together: the weight of each.
CONTRASTS = {
    "51% - 100%": (-0.5, 0.5, -0.5, 0.5),
    "rehearsal - none": (-0.5, -0.5, 0.5, 0.5),
    "interaction": (1, -1, -1, 1),
}


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


def kinds_of_forgetting(stages: int) -> Kinds:
    """The rise of a run's loss on the test text of each dataset from its own stage to each later one, by name."""

    def rise(run: dict, dataset: int, stage: int) -> float:
        return run["loss_matrix"][stage][dataset] - run["loss_matrix"][dataset + 1][dataset]

    times = {stage: f"after stage {stage}" for stage in range(2, stages)} | {stages: "at the end"}
    return {
        f"dataset {dataset + 1} {time}": partial(rise, dataset=dataset, stage=stage)
        for stage, time in times.items()
        for dataset in range(stage - 1)
    }


def format_seeds(reports: list[dict]) -> str:
    """Means over the seeds with 95% intervals, K-1's forgetting as a share of the baseline's, criteria by seed."""
    labels = labels_of(reports[0])
    kinds, earlier = kinds_of_forgetting(len(labels)), len(labels) - 1
    models = {arm: [report["models"][arm] for report in reports] for arm in ARMS}
    arms = [(ARMS[arm], runs) for arm, runs in models.items()]
    tables = {
        **{f"{title}: {AT_BOTH_TIMES}": at_both_times(score, labels) for score, (title, _, _) in SHOWN.items()},
        "Forgetting in % of the accuracy after the dataset's own stage": forgetting_columns(reports[0], earlier),
        "Forgetting in nats per token": [mean_of(*kind) for kind in kinds.items()],
    }
    criteria = [["Criterion", *(f"seed {report['seed']}" for report in reports)]]
    judged = {
        items[0]["criterion"]: [item["met"] for item in items]
        for items in zip(*(report["criteria"] for report in reports))
    }
    rehearsed = [keeps_quality(run["generation"]) for run in models["baseline_rehearsal"]]
    judged[f"Criterion 3 of {ARMS['baseline_rehearsal']}"] = rehearsed
    criteria += [[name, *("met" if is_met else "NOT MET" for is_met in seeds)] for name, seeds in judged.items()]
    sections = [
        *(Table(caption, rows_of("Model", arms, columns)) for caption, columns in tables.items()),
        against_baseline(models, labels, kinds),
        two_by_two(models, kinds),
        predicted_and_real(models),
        Table(f"The criteria of the report ({len(reports)} seeds)", criteria),
    ]
    return "\n\n".join(map(str, sections))


def against_baseline(models: Models, labels: list[str], kinds: Kinds) -> Table:
    """Each model but the baseline against it, seed by seed, in nats per token."""

    def compared(operation: Callable[..., float], metric: Callable[[dict], float]) -> Callable[[tuple], float]:
        return lambda pair: operation(*map(metric, pair))

    pairs = [(ARMS[arm], [*zip(runs, models["baseline"])]) for arm, runs in models.items() if arm != "baseline"]
    columns = [mean_of(kind, compared(truediv, forgotten)) for kind, forgotten in kinds.items()]
    columns += [
        mean_of(f"new loss of {label}", compared(sub, entry("loss_matrix", number + 1, number)))
        for number, label in enumerate(labels[1:], start=1)
    ]
    caption = (
        "Forgetting in nats as a share of the baseline's, and loss on later datasets after their own stage less the "
        "baseline's; seed by seed, means"
    )
    return Table(caption, rows_of("Model", pairs, columns))


def two_by_two(models: Models, kinds: Kinds) -> Table:
    """The four arms, then main effects and interaction, seed by seed, means with 95% intervals.

    The effect of the 51% is the mean of (51% - 100%) over both
    columns, that of rehearsal the mean of (rehearsal - none) over both rows, and the interaction is how much
    more the 51% do with rehearsal than without.
    """
    quantities: dict[str, Callable[[dict], float]] = {
        "average forgetting, %": entry("average_forgetting_percent"),
        "mean of all kinds of forgetting, nats": lambda run: mean([forgotten(run) for forgotten in kinds.values()]),
        "loss on new datasets, nats": lambda run: new_dataset_loss(run["loss_matrix"]),
        "mean loss at the end, nats": entry("mean_final_loss"),
    }
    # Of each seed the quantity of the four arms.
    seeds = [
        (title, [[quantity(run) for run in runs] for runs in zip(*(models[arm] for arm in ARMS))])
        for title, quantity in quantities.items()
    ]
    columns = [mean_of(label, itemgetter(place)) for place, label in enumerate(ARMS.values())]
    columns += [mean_of(label, partial(np.dot, weights)) for label, weights in CONTRASTS.items()]
    caption = "Two by two: what the 51% do, what rehearsal does, and what they do together"
    return Table(caption, rows_of("", seeds, columns))


def predicted_and_real(models: Models) -> Table:
    """Predicted forgetting beside the real rise of the loss on test text in the same stage, of all runs that rehearse.

    In nats per token, means over the seeds.
    """
    rows = [["Model", "Stage", "Dataset", "Predicted", "Real"]]
    pairs: list[tuple[float, float]] = []
    for arm, runs in models.items():
        for stage, found in enumerate(runs[0]["predicted_forgetting"]):
            for dataset in range(len(found)):
                predicted = [run["predicted_forgetting"][stage][dataset] for run in runs]
                losses = [run["loss_matrix"] for run in runs]
                real = [loss[stage + 1][dataset] - loss[stage][dataset] for loss in losses]
                pairs += zip(predicted, real)
                rows.append([ARMS[arm], str(stage + 1), str(dataset + 1), *map(mean_and_interval, (predicted, real))])
    both = np.array(pairs).T
    caption = (
        "Predicted forgetting, the divergence on the model's own text, beside the real rise of the loss in the same "
        f"stage, in nats per token; they are {mean(abs(both[0] - both[1])):.3f} apart in the mean of {len(pairs)} "
        f"pairs, their correlation is {np.corrcoef(both)[0, 1]:.2f}"
    )
    return Table(caption, rows)


@command
def main() -> None:
    parser = module_parser("k1.study.seeds", __doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE", help="written by python3 -m k1.report --json")
    print(format_seeds(load_reports(parser.parse_args().reports)))


if __name__ == "__main__":
    main()
