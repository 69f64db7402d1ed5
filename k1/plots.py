"""Pictures of recorded results, legible in black and white."""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from k1.files import write_atomically
from k1.metrics import mean
from k1.tables import LABELS

matplotlib.rcParams["axes.spines.top"] = matplotlib.rcParams["axes.spines.right"] = False

# Marker, line style and colour of each method; the first two alone tell them apart.
STYLES = {"k1": ("o", "-", "#0b559f"), "baseline": ("s", "--", "#b3540a")}


def plot_frontier(later: dict[str, list[dict]], path: Path) -> None:
    """Plot forgetting against new-dataset loss, one line per method over its learning rates, as PNG.

    `later` maps each method to the study's records of datasets 2 and 3. The
    horizontal axis is the mean validation loss of datasets 2 and 3, each right
    after its own stage; the vertical axis is the mean rise of the losses of
    datasets 1 and 2 by the end; both in nats per token. Down and left is better.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for method, records in later.items():
        marker, line, color = STYLES[method]
        points = [(*frontier_point(record), record["learning_rate"]) for record in records if "failed" not in record]
        x, y, rates = zip(*points)
        axes.plot(x, y, marker=marker, linestyle=line, color=color, label=LABELS[method])
        for point in points:
            above = method == "baseline"
            axes.annotate(
                f"{point[2]:g}", point[:2], textcoords="offset points",
                xytext=(5, 5) if above else (-5, -12), ha="left" if above else "right", fontsize=8, color=color,
            )  # fmt: skip
    axes.set_xlabel("loss of datasets 2 and 3 after their own stage (nats per token)")
    axes.set_ylabel("forgetting of datasets 1 and 2 (nats per token)")
    axes.margins(0.12)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(picture.getvalue()))


def frontier_point(record: dict) -> tuple[float, float]:
    """(mean loss of the new datasets after their own stage, mean rise of earlier datasets' losses by the end)."""
    own, final = list(record["own_loss"].values()), list(record["final_loss"].values())
    return mean(own[1:]), mean([end - start for start, end in zip(own[:-1], final[:-1])])
