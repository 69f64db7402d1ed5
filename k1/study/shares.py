"""What the share of parameters that a step of K-1 updates is worth: figure, table and 51% against 100%.

From the recorded runs of a study on three datasets. Each method is at the setting
with the lowest mean loss over all datasets at the end, on validation text; all
figures are of test text, in nats per token.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from k1.presets import UPDATE_FRACTION
from k1.report.metrics import mean
from k1.report.tables import format_table
from k1.study.frontier import (
    KINDS,
    REFERENCE,
    Point,
    best_point,
    half_interval,
    learning_and_forgetting,
    losses,
    mean_and_interval,
    points_of,
)
from k1.study.methods import METHODS, SHARES
from k1.study.plots import ARM_STYLES
from k1.study.tables import kinds_of

HALF, ALL = "k1", "k1_all"
# By method of the study, in ascending order.
SHARE_OF = dict(
    sorted(
        {**{f"k1_{share:.0%}": share for share in SHARES}, HALF: UPDATE_FRACTION, ALL: 1.0}.items(),
        key=lambda item: item[1],
    )
)
REFERENCES = (REFERENCE, "dense_rehearsal")
FORGETTING, LEARNING, FINAL = "mean forgetting", "new-dataset loss", "mean loss at the end"


def best_by_share(runs: dict[str, dict]) -> dict[str, Point]:
    """Of the records `runs` the best setting of each share that has any, in ascending order of the shares."""
    points = points_of(runs)
    return {method: best_point(points[method]) for method in SHARE_OF if method in points}


def best_references(runs: dict[str, dict]) -> dict[str, Point]:
    """Of the records `runs` the best setting of the dense baseline, without and with rehearsal, where there are any."""
    points = points_of(runs)
    return {method: best_point(points[method]) for method in REFERENCES if method in points}


def outcome(record: dict) -> dict[str, float]:
    """What a run forgot, the mean of three kinds and each of them, and its loss on new datasets and at the end."""
    pairs = learning_and_forgetting(record, "test")
    return {
        FORGETTING: mean([pairs[kind][1] for kind in KINDS]),
        **{kind: pairs[kind][1] for kind in KINDS},
        LEARNING: pairs["dataset 2 at the end"][0],
        FINAL: mean(list(losses(record, "test")[-1].values())),
    }


def paired_differences(ours: Point, theirs: Point) -> dict[str, dict[int, float]]:
    """By quantity of `outcome` and seed: `ours` minus `theirs`, at the seeds that both have."""
    first, second = ({record["seed"]: outcome(record) for record in point.records} for point in (ours, theirs))
    seeds = [seed for seed in first if seed in second]
    return {
        name: {seed: first[seed][name] - second[seed][name] for seed in seeds} for name in outcome(ours.records[0])
    }


def format_shares(runs: dict[str, dict]) -> str:
    """Markdown: each share and the dense baselines at their best, then 51% against 100% where both ran.

    `runs` are the records of a study and have at least one share.
    """
    shares = best_by_share(runs)
    kinds = kinds_of(list(losses(next(iter(shares.values())).records[0], "test")[-1]))
    sections = [
        "Forgetting and loss in nats per token on test text by the share of parameters that a step of K-1 updates, "
        "each at the setting with the lowest mean loss at the end on validation text",
        shares_table({**shares, **best_references(runs)}, kinds),
    ]
    if HALF in shares and ALL in shares:
        differences = paired_differences(shares[HALF], shares[ALL])
        if differences[FORGETTING]:
            sections += [
                f"{SHARE_OF[HALF]:.0%} minus 100% in nats per token, seed by seed, and the mean with its 95% interval; "
                f"below 0, {SHARE_OF[HALF]:.0%} is better",
                differences_table(differences, kinds),
            ]
    return "\n\n".join(sections)


def shares_table(best: dict[str, Point], kinds: list[str]) -> str:
    """What each method of `best` forgot and learned; `kinds` are the titles of the three kinds of forgetting."""
    rows = [["Updated per step", "Learning rate", "Seeds", *kinds, "New-dataset loss", "Mean loss at the end"]]
    for method, point in best.items():
        found = [outcome(record) for record in point.records]
        name = f"{SHARE_OF[method]:.0%}" if method in SHARE_OF else METHODS[method].label
        cells = [mean_and_interval([run[quantity] for run in found]) for quantity in (*KINDS, LEARNING, FINAL)]
        rows.append([name, point.label, str(len(point.records)), *cells])
    return format_table(rows)


def differences_table(differences: dict[str, dict[int, float]], kinds: list[str]) -> str:
    """The result of `paired_differences`, one column a seed; `kinds` as in `shares_table`."""
    titles = dict(zip(KINDS, kinds))
    rows = [["", *(f"seed {seed}" for seed in differences[FORGETTING]), "Mean"]]
    for quantity, by_seed in differences.items():
        values = list(by_seed.values())
        rows.append(
            [titles.get(quantity, quantity), *(f"{value:+.3f}" for value in values), mean_and_interval(values)]
        )
    return format_table(rows)


def shares_figure(runs: dict[str, dict]) -> Figure:
    """Forgetting and new-dataset loss over the share of parameters updated, with the dense baselines as levels.

    Means over the seeds with 95% intervals; `runs` has at least one share.
    """
    shares, references = best_by_share(runs), best_references(runs)
    figure = Figure(figsize=(7.5, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_shares(left, shares, references, FORGETTING)
    draw_shares(right, shares, references, LEARNING)
    left.set_ylabel("forgetting (nats per token)")
    right.set_ylabel("loss on new datasets (nats per token)")
    figure.supxlabel("parameters updated per step (%)", fontsize="medium")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def draw_shares(axes: Axes, shares: dict[str, Point], references: dict[str, Point], quantity: str) -> None:
    """Draw one `quantity` of `outcome` into `axes`: points with intervals for K-1, a level for each reference."""
    line, marker, color = ARM_STYLES["k1"]
    found = [[outcome(record)[quantity] for record in point.records] for point in shares.values()]
    percentages = [100 * SHARE_OF[method] for method in shares]
    axes.errorbar(
        percentages, [mean(values) for values in found], yerr=[half_interval(values) for values in found],
        linestyle=line, marker=marker, color=color, markersize=5, capsize=3, label="K-1",
    )  # fmt: skip
    for method, point in references.items():
        level = mean([outcome(record)[quantity] for record in point.records])
        line, _, color = ARM_STYLES[method]
        axes.axhline(level, linestyle=line, color=color, label=METHODS[method].label)
    axes.set_xlim(0, 104)
    axes.set_xticks(percentages, [f"{value:.0f}" for value in percentages], fontsize=9)
