"""python3 -m k1.study.stream: any number of datasets, learned one after another by the arms of the experiment.

The four arms, each at one learning rate, over several seeds. A run that is recorded
in results.json below --out is not repeated, so the stream can be stopped and started
again. Each training runs on one thread. The tables go to stdout and results.md, the
picture of all datasets to stream.png. Three of the default datasets are written by
python3 -m k1.study.unseen models/unseen.
"""

from math import ceil

from matplotlib.figure import Figure

from k1.config import PRESETS
from k1.errors import command
from k1.experiment import ARMS
from k1.flag_types import positive
from k1.report.metrics import mean
from k1.report.plots import STYLES, percent
from k1.study.frontier import REFERENCE
from k1.study.grid import Run, execute_in_turn, label_of, open_results, recorded_settings, show, study_parser
from k1.study.methods import METHODS
from k1.study.points import Point, averages_table, dataset_tables, matrix_of, points_of
from k1.study.sequence import data_loader
from k1.study.unseen import CORPORA

DATASETS = ["wikitext", "code", "science", *(f"models/unseen/{name}.jsonl" for name in CORPORA)]


def stream_tables(arms: dict[str, Point]) -> str:
    """The tables of a stream as Markdown; `arms` are the methods with their finished runs, at least one."""
    rows = [(METHODS[arm].label, point) for arm, point in arms.items()]
    tables = [*dataset_tables(rows), averages_table(rows, lambda _: arms.get(REFERENCE), "the baseline")]
    return "\n\n".join(map(str, tables))


def stream_figure(arms: dict[str, Point]) -> Figure:
    """Accuracy of every dataset of a stream over the stages, from its own stage on, one panel each.

    `arms` are arms of the experiment with their finished runs. Next-token accuracy
    on test text in %, means over seeds; all panels have the same axes.
    """
    names = list(next(iter(arms.values())).records[0]["evaluations"][-1])
    count = len(names)
    height = ceil(count / 3)
    width = ceil(count / height)
    figure = Figure(figsize=(7.5, 1.25 + 1.75 * height), layout="constrained")
    panels = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False).flatten()
    for stage, (axes, name) in enumerate(zip(panels, names), start=1):
        for arm, point in arms.items():
            line, marker, color = STYLES[arm]
            columns = [[row[stage - 1] for row in matrix_of(record, "accuracy")[stage:]] for record in point.records]
            axes.plot(
                range(stage, count + 1), percent([mean(values) for values in zip(*columns)]),
                linestyle=line, marker=marker, color=color, markersize=4, clip_on=False, label=METHODS[arm].label,
            )  # fmt: skip
        label = f"{stage}: {name}"
        axes.set_title(label if len(label) <= 30 else f"{label[:29]}…", fontsize="medium")
        # Of a row that is not full the panels above the gap are the last of their column.
        axes.tick_params(labelbottom=stage + width > count)
    for axes in panels[count:]:
        axes.set_visible(False)
    panels[0].set_xlim(0.75, count + 0.25)
    panels[0].set_xticks(range(1, count + 1))
    figure.supxlabel("after stage", fontsize="medium")
    figure.supylabel("next-token accuracy on test text (%)", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(arms), frameon=False)
    return figure


@command
def main() -> None:
    parser = study_parser("k1.study.stream", __doc__, "models/stream", DATASETS)
    parser.add_argument(
        "--learning_rates", nargs=len(ARMS), type=positive, metavar=tuple(name.upper() for name in ARMS),
        help="on all datasets but the first, one for each arm (default: by preset)",
    )  # fmt: skip
    arguments = parser.parse_args()
    presets = PRESETS[arguments.preset].learning_rate
    rates = dict(zip(ARMS, arguments.learning_rates or [presets[arm][1] for arm in ARMS]))
    settings = recorded_settings(arguments)
    # All of them now: a name that is wrong should not show after hours of training.
    texts = {label_of(name): data_loader(name, settings).fingerprint for name in arguments.dataset_names}
    results = open_results(arguments.out, {**settings, "text": texts})
    later = {Run(arm, seed, rate): METHODS[arm].script for seed in arguments.seeds for arm, rate in rates.items()}
    first_rates = {first: rates[:1] for first, rates in presets.items()}
    arms = {
        arm: points[0] for arm, points in points_of(execute_in_turn(later, first_rates, results, arguments)).items()
    }
    show(arguments.out, stream_tables(arms), "stream.png", stream_figure(arms))


if __name__ == "__main__":
    main()
