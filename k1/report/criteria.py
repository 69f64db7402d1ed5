"""The four success criteria of the experiment."""

from k1.data.sources import dataset_labels
from k1.report.tables import SCORES

MAX_FORGETTING_PERCENT = 25.0
MIN_QUALITY_KEPT = 0.90


def judge(k1: dict, baseline: dict) -> list[dict]:
    """The four success criteria, each with `criterion`, `met`, `values` and `figures` (the values as text)."""
    name = next(iter(k1["own"]))
    ours, theirs = k1["forgetting_percent"][name], baseline["forgetting_percent"][name]
    labels = dict(zip(k1["own"], dataset_labels(k1["own"])))
    first = labels[name]
    kept = {
        name: {score: values["interval"][0] for score, values in scores.items()}
        for name, scores in k1["generation"].items()
    }
    averages = k1["average_forgetting_percent"], baseline["average_forgetting_percent"]
    return [
        {
            "criterion": f"1. K-1 keeps dataset 1: it forgets at most {MAX_FORGETTING_PERCENT:g}% of {first}",
            "met": ours <= MAX_FORGETTING_PERCENT,
            "values": {"k1": ours, "threshold": MAX_FORGETTING_PERCENT},
            "figures": f"{ours:.1f}%",
        },
        {
            "criterion": f"2. The baseline does not: it forgets more than {MAX_FORGETTING_PERCENT:g}% of {first}",
            "met": theirs > MAX_FORGETTING_PERCENT,
            "values": {"baseline": theirs, "threshold": MAX_FORGETTING_PERCENT},
            "figures": f"{theirs:.1f}%",
        },
        {
            "criterion": f"3. K-1's generated text stays good: at least {MIN_QUALITY_KEPT:.0%} of each score is kept, "
            "by the lower end of its 95% interval",
            "met": all(min(shares.values()) >= MIN_QUALITY_KEPT for shares in kept.values()),
            "values": {"k1": kept, "threshold": MIN_QUALITY_KEPT},
            # Nothing follows the last dataset.
            "figures": "; ".join(
                f"{labels[name]} " + ", ".join(f"{SCORES[score]} {share:.0%}" for score, share in shares.items())
                for name, shares in list(kept.items())[:-1]
            ),
        },
        {
            "criterion": f"4. K-1 forgets less than the baseline, of {first} and on average",
            "met": ours < theirs and averages[0] < averages[1],
            "values": {"k1": [ours, averages[0]], "baseline": [theirs, averages[1]]},
            "figures": f"{first} {ours:.1f}% against {theirs:.1f}%, "
            f"average {averages[0]:.1f}% against {averages[1]:.1f}%",
        },
    ]
