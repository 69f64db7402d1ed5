"""The four success criteria of the experiment."""

from k1.data.sources import dataset_labels
from k1.report.tables import SCORES

MAX_FORGETTING_PERCENT = 25.0
MIN_QUALITY_KEPT = 0.90


def judge(k1: dict, baseline: dict) -> list[dict]:
    """The four success criteria, each with `criterion`, `met`, `values` and `figures` (the values as text)."""
    name = next(iter(k1["own"]))
    ours, theirs = ((arm["forgetting_percent"][name], arm["average_forgetting_percent"]) for arm in (k1, baseline))
    labels = dict(zip(k1["own"], dataset_labels(k1["own"])))
    first, threshold = labels[name], f"{MAX_FORGETTING_PERCENT:g}% of {labels[name]}"
    kept = {
        name: {score: values["interval"][0] for score, values in scores.items()}
        for name, scores in k1["generation"].items()
    }

    def criterion(text: str, met: bool, values: dict, figures: str) -> dict:
        return {"criterion": text, "met": met, "values": values, "figures": figures}

    return [
        criterion(
            f"1. K-1 keeps dataset 1: it forgets at most {threshold}", ours[0] <= MAX_FORGETTING_PERCENT,
            {"k1": ours[0], "threshold": MAX_FORGETTING_PERCENT}, f"{ours[0]:.1f}%",
        ),
        criterion(
            f"2. The baseline does not: it forgets more than {threshold}", theirs[0] > MAX_FORGETTING_PERCENT,
            {"baseline": theirs[0], "threshold": MAX_FORGETTING_PERCENT}, f"{theirs[0]:.1f}%",
        ),
        criterion(
            f"3. K-1's generated text stays good: at least {MIN_QUALITY_KEPT:.0%} of each score is kept, "
            "by the lower end of its 95% interval",
            all(min(shares.values()) >= MIN_QUALITY_KEPT for shares in kept.values()),
            {"k1": kept, "threshold": MIN_QUALITY_KEPT},
            # Nothing follows the last dataset.
            "; ".join(
                f"{labels[name]} " + ", ".join(f"{SCORES[score]} {share:.0%}" for score, share in shares.items())
                for name, shares in list(kept.items())[:-1]
            ),
        ),
        criterion(
            f"4. K-1 forgets less than the baseline, of {first} and on average",
            all(mine < other for mine, other in zip(ours, theirs)),
            {"k1": list(ours), "baseline": list(theirs)},
            f"{first} {ours[0]:.1f}% against {theirs[0]:.1f}%, average {ours[1]:.1f}% against {theirs[1]:.1f}%",
        ),
    ]  # fmt: skip
