"""python3 -m k1.study.map: where updating fewer parameters could pay, over shares, rehearsal and policies.

Datasets 2 and 3 are learned from one model of dataset 1 a seed, K-1's, with every
combination of the share of parameters that a step updates, the share of rehearsed
text, and the policy that chooses the parameters, at several learning rates. A run
that is recorded in results.json below --out is not repeated. Each cell is shown at
the rate with the lowest mean loss at the end on validation text, beside 100% with the
same rehearsal. The table goes to stdout and results.md, the picture to map.png.
"""

import argparse
from itertools import product
from math import inf

from matplotlib.figure import Figure

from k1.config import PRESETS
from k1.errors import K1Error, UsageError, command
from k1.files import write_text
from k1.report.metrics import mean
from k1.report.plots import write_figure
from k1.report.tables import format_table
from k1.sparse import UPDATE_FRACTION
from k1.study.commands import open_results, parse, recorded_settings, study_parser
from k1.study.execution import Run, execute_in_turn
from k1.study.forgetting import final_loss, forgotten_nats, new_dataset_loss
from k1.study.frontier import Point, best_point, half_interval, mean_and_interval, points_of
from k1.study.methods import HELD_RATES, MAP, PLASTIC_RATES

SHARES = (0.01, 0.1, UPDATE_FRACTION)
REHEARSALS = (0.0, 1 / 16, 1 / 8, 1 / 4)
ALL = "random_windows"  # under this policy the runs of 100%, which has none, are recorded
MARKERS = "^sDvp*Xd"

Cells = dict[tuple[float, float, str], Point]


def parse_map_arguments() -> argparse.Namespace:
    """The command line of the map."""
    parser = study_parser("k1.study.map", __doc__, "models/map")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of the parameters, besides 1")
    parser.add_argument("--rehearsals", nargs="+", type=float, default=REHEARSALS, help="shares of rehearsed text")
    parser.add_argument("--policies", nargs="+", choices=list(MAP), default=list(MAP), metavar="POLICY")
    parser.add_argument("--learning_rates", nargs="+", type=float, help="of 100%% (default: as in the study)")
    parser.add_argument("--dataset_names", nargs=3, default=["wikitext", "code", "science"], metavar="NAME")
    arguments = parse(parser)
    if not all(0 < share < 1 for share in arguments.shares) or not all(0 <= part < 1 for part in arguments.rehearsals):
        raise UsageError("--shares must be above 0 and below 1, --rehearsals at least 0 and below 1")
    if not all(0 < rate < inf for rate in arguments.learning_rates or ()):
        raise UsageError("--learning_rates must be positive numbers")
    return arguments


def own_rate(rate: float, share: float, policy: str) -> float:
    """The rate of a cell beside `rate` of 100%: that at which a step is about as long, the root of the sum of squares.

    The change of random windows is taken times 1/share already, that of the other policies is not.
    """
    return float(f"{rate * share ** (0.5 if policy == ALL else -0.5):.2g}")


def runs_of(arguments: argparse.Namespace, seed: int) -> list[Run]:
    """All runs of the map with `seed`: every share and policy, and 100% once."""
    cells = [(ALL, 1.0), *product(arguments.policies, arguments.shares)]
    return [
        Run(policy, seed, own_rate(rate, share, policy), (("update_fraction", share), ("rehearsal", rehearsal)))
        for rehearsal in arguments.rehearsals
        for policy, share in dict.fromkeys(cells)
        for rate in arguments.learning_rates or (HELD_RATES if rehearsal else PLASTIC_RATES)
    ]


def cells_of(runs: dict[str, dict]) -> Cells:
    """The best finished point of each (rehearsal, share, policy), in this order."""
    found: dict[tuple[float, float, str], list[Point]] = {}
    for policy, points in points_of(runs, MAP).items():
        for point in points:
            setting = dict(point.setting)
            found.setdefault((setting["rehearsal"], setting["update_fraction"], policy), []).append(point)
    return {cell: best_point(found[cell]) for cell in sorted(found)}


def differences(ours: Point, theirs: Point, metric) -> list[float]:
    """`metric` of each run of `ours` minus that of `theirs` with the same seed."""
    other = {record["seed"]: metric(record) for record in theirs.records}
    return [metric(record) - other[record["seed"]] for record in ours.records if record["seed"] in other]


def map_table(cells: Cells) -> str:
    """Every cell beside 100% with the same rehearsal, as Markdown; means with 95% intervals, on test text."""
    metrics = {"Forgetting": forgotten_nats, "New-dataset loss": new_dataset_loss, "Loss at the end": final_loss}
    head = ["Rehearsal", "Share", "Policy", "Learning rate", "Seeds", *metrics]
    rows = [[*head, *(f"{name} - 100%'s" for name in metrics)]]
    for (rehearsal, share, policy), point in cells.items():
        row = [f"{rehearsal:g}", f"{share:.0%}", MAP[policy].label if share < 1 else "-", f"{point.learning_rate:g}"]
        row += [str(len(point.records))]
        row += [mean_and_interval([metric(record) for record in point.records]) for metric in metrics.values()]
        dense = cells.get((rehearsal, 1.0, ALL))
        for metric in metrics.values():
            values = differences(point, dense, metric) if dense and share < 1 else []
            row.append(mean_and_interval(values) if values else "-")
        rows.append(row)
    return "Forgetting and loss in nats per token on test text\n\n" + format_table(rows)


def map_figure(cells: Cells) -> Figure:
    """Forgetting against the loss on new datasets, one panel a policy, one line a share over its rehearsal."""
    policies = [policy for policy in MAP if any(found == policy for _, _, found in cells)]
    figure = Figure(figsize=(1 + 3 * len(policies), 3.8), layout="constrained")
    panels = figure.subplots(1, len(policies), sharex=True, sharey=True, squeeze=False)[0]
    for axes, policy in zip(panels, policies):
        shares = {share for _, share, found in cells if found == policy} | {1.0}
        for marker, share in zip(MARKERS, sorted(shares)):
            # 100% is in every panel.
            points = [cells[cell] for cell in cells if cell[1:] == (share, ALL if share == 1 else policy)]
            forgotten = [[forgotten_nats(record) for record in point.records] for point in points]
            axes.errorbar(
                [mean([new_dataset_loss(record) for record in point.records]) for point in points],
                [mean(values) for values in forgotten], yerr=[half_interval(values) for values in forgotten],
                marker=marker, linestyle="-" if share == 1 else ":", color="black" if share == 1 else "0.35",
                capsize=3, markerfacecolor="black" if share == 1 else "white", label=f"{share:.0%}",
            )  # fmt: skip
        axes.set_title(MAP[policy].label, fontsize="medium")
    figure.supxlabel("loss on new datasets (nats per token)", fontsize="medium")
    figure.supylabel("forgetting (nats per token)", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MARKERS), frameon=False)
    return figure


@command
def main() -> None:
    arguments = parse_map_arguments()
    results = open_results(arguments.out, recorded_settings(arguments))
    later = {run: "k1" for seed in arguments.seeds for run in runs_of(arguments, seed)}
    execute_in_turn(later, {"k1": [PRESETS[arguments.preset].learning_rate["k1"][0]]}, results, arguments)
    cells = cells_of(results["runs"])
    if not cells:
        raise K1Error("no run finished; choose lower --learning_rates")
    write_text(arguments.out / "results.md", map_table(cells) + "\n")
    write_figure(arguments.out / "map.png", map_figure(cells), dpi=120)
    print(map_table(cells))


if __name__ == "__main__":
    main()
