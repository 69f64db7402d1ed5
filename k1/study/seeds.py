"""python3 -m k1.study.seeds: several seeds of the experiment together, from the JSON files that k1.report wrote."""

import json
from pathlib import Path
from statistics import correlation

from k1.errors import K1Error, Parser, command
from k1.experiment import ARMS
from k1.report.metrics import mean
from k1.report.tables import dataset_label, format_table
from k1.study.frontier import KINDS, mean_and_interval


def load_reports(paths: list[Path]) -> list[dict]:
    """The reports, one a seed; raises `K1Error` if one cannot be read or they are not of the same experiment."""
    reports = []
    for path in paths:
        try:
            report = json.loads(path.read_text())
            identity = {
                "data": [(dataset["name"], dataset["fingerprint"]) for dataset in report["datasets"]],
                "preset": report["preset"],
                "learning rates": {name: model["learning_rates"] for name, model in report["models"].items()},
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise K1Error(f"{path} cannot be read as a report ({error}); write it with python3 -m k1.report --json")
        if not reports:
            expected = identity
        different = [name for name in identity if identity[name] != expected[name]]
        if different:
            raise K1Error(f"{path} is of another experiment than {paths[0]}: {', '.join(different)} differ")
        reports.append(report)
    if len({report["seed"] for report in reports}) < len(reports):
        raise K1Error("two of the reports are of the same seed; name each seed once")
    return reports


def forgotten_nats(model: dict) -> dict[str, float]:
    """Forgetting in nats per token: dataset 1 after stage 2, datasets 1 and 2 at the end."""
    loss = model["loss_matrix"]
    return dict(zip(KINDS, (loss[2][0] - loss[1][0], loss[3][0] - loss[1][0], loss[3][1] - loss[2][1])))


def format_seeds(reports: list[dict]) -> str:
    """Means over the seeds with 95% intervals, K-1's forgetting as a share of the baseline's, criteria by seed."""
    names = [dataset["name"] for dataset in reports[0]["datasets"]]
    models = {method: [report["models"][method] for report in reports] for method in reports[0]["models"]}

    def table(title: str, columns: list[str], cell) -> list[str]:
        rows = [["Model", *columns]]
        rows += [[ARMS[method], *cell(runs)] for method, runs in models.items()]
        return [title, format_table(rows)]

    def at_both_times(score: str, scale: float, digits: int):
        return lambda runs: [
            " -> ".join(
                mean_and_interval([scale * run[when][name][score] for run in runs], digits) for when in ("own", "final")
            )
            for name in names
        ]

    labels = [dataset_label(name) for name in names]
    criteria = [["Criterion", *(f"seed {report['seed']}" for report in reports)]]
    for index, item in enumerate(reports[0]["criteria"]):
        met = ["met" if report["criteria"][index]["met"] else "NOT MET" for report in reports]
        criteria.append([item["criterion"], *met])
    sections = [
        *table(
            "Next-token accuracy on test text in %: after the dataset's own stage -> at the end",
            labels, at_both_times("accuracy", 100, 1),
        ),
        *table(
            "Nats per token on test text: after the dataset's own stage -> at the end",
            labels, at_both_times("loss", 1, 3),
        ),
        *table(
            "Forgetting in % of the accuracy after the dataset's own stage",
            [*labels[:2], "Average"],
            lambda runs: [
                *(mean_and_interval([run["forgetting_percent"][name] for run in runs], 1) for name in names[:2]),
                mean_and_interval([run["average_forgetting_percent"] for run in runs], 1),
            ],
        ),
        *table(
            "Forgetting in nats per token", KINDS,
            lambda runs: [mean_and_interval([forgotten_nats(run)[kind] for run in runs]) for kind in KINDS],
        ),
        "Forgetting in nats as a share of the baseline's, and loss on datasets 2 and 3 after their own stage less the "
        "baseline's; seed by seed, means",
        format_table(against_baseline(models, names)),
        *two_by_two(models, names),
        *predicted_and_real(models),
        f"The criteria of the report ({len(reports)} seeds)",
        format_table(criteria),
    ]  # fmt: skip
    return "\n\n".join(sections)


def against_baseline(models: dict[str, list[dict]], names: list[str]) -> list[list[str]]:
    """The rows of a table: each model but the baseline against it, seed by seed, in nats per token."""
    rows = [["Model", *KINDS, *(f"new loss of {dataset_label(name)}" for name in names[1:])]]
    for method in [method for method in models if method != "baseline"]:
        pairs = list(zip(models[method], models["baseline"]))
        cells = [
            mean_and_interval([forgotten_nats(run)[kind] / forgotten_nats(dense)[kind] for run, dense in pairs], 3)
            for kind in KINDS
        ]
        cells += [
            mean_and_interval([run["own"][name]["loss"] - dense["own"][name]["loss"] for run, dense in pairs], 3)
            for name in names[1:]
        ]
        rows.append([ARMS[method], *cells])
    return rows


def two_by_two(models: dict[str, list[dict]], names: list[str]) -> list[str]:
    """The four arms, then main effects and interaction, seed by seed, means with 95% intervals.

    Nothing unless all four arms are there. The effect of the 51% is the mean of (51% - 100%) over both
    columns, that of rehearsal the mean of (rehearsal - none) over both rows, and the interaction is how much
    more the 51% do with rehearsal than without.
    """
    if set(models) != set(ARMS):
        return []
    quantities = {
        "average forgetting, %": lambda run: run["average_forgetting_percent"],
        "mean of the three kinds of forgetting, nats": lambda run: mean(list(forgotten_nats(run).values())),
        "loss on new datasets, nats": lambda run: mean([run["own"][name]["loss"] for name in names[1:]]),
        "mean loss at the end, nats": lambda run: run["mean_final_loss"],
    }
    rows = [["", *ARMS.values(), "51% - 100%", "rehearsal - none", "interaction"]]
    for title, quantity in quantities.items():
        cells = [[quantity(run) for run in models[arm]] for arm in ARMS]
        by_seed = list(zip(*cells))
        effects = [
            [((s - d) + (b - r)) / 2 for d, s, r, b in by_seed],
            [((r - d) + (b - s)) / 2 for d, s, r, b in by_seed],
            [(b - r) - (s - d) for d, s, r, b in by_seed],
        ]
        rows.append([title, *map(mean_and_interval, (*cells, *effects))])
    return ["Two by two: what the 51% do, what rehearsal does, and what they do together", format_table(rows)]


def predicted_and_real(models: dict[str, list[dict]]) -> list[str]:
    """Predicted forgetting beside the real rise of the loss on test text in the same stage, of all runs that rehearse.

    In nats per token, means over the seeds; nothing if no run rehearses.
    """
    rows, pairs = [["Model", "Stage", "Dataset", "Predicted", "Real"]], []
    for arm, runs in models.items():
        stages = runs[0]["predicted_forgetting"]
        for stage, dataset in [(stage, number) for stage, found in enumerate(stages) for number in range(len(found))]:
            predicted = [run["predicted_forgetting"][stage][dataset] for run in runs]
            real = [run["loss_matrix"][stage + 1][dataset] - run["loss_matrix"][stage][dataset] for run in runs]
            pairs += zip(predicted, real)
            rows.append([ARMS[arm], str(stage + 1), str(dataset + 1), *map(mean_and_interval, (predicted, real))])
    if not pairs:
        return []
    error = mean([abs(predicted - real) for predicted, real in pairs])
    caption = (
        "Predicted forgetting, the divergence on the model's own text, beside the real rise of the loss in the same "
        f"stage, in nats per token; they are {error:.3f} apart in the mean of {len(pairs)} pairs, their correlation is "
        f"{correlation(*zip(*pairs)):.2f}"
    )
    return [caption, format_table(rows)]


@command
def main() -> None:
    parser = Parser(prog="python3 -m k1.study.seeds", description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE", help="written by python3 -m k1.report --json")
    print(format_seeds(load_reports(parser.parse_args().reports)))


if __name__ == "__main__":
    main()
