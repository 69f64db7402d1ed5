"""The four success criteria of the experiment."""

from k1.report.tables import dataset_label

MAX_FORGETTING_PERCENT = 25.0
MIN_QUALITY_KEPT = 0.90


def judge(k1: dict, baseline: dict) -> list[dict]:
    """The four success criteria, each with `criterion`, `met`, `values` and `figures` (the values as text)."""
    name = next(iter(k1["own"]))
    ours, theirs = k1["forgetting_percent"][name], baseline["forgetting_percent"][name]
    first = dataset_label(name)
    kept = {name: quality_kept(scores) for name, scores in k1["generation"].items()}
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
            "criterion": f"3. K-1's generated text stays good: at least {MIN_QUALITY_KEPT:.0%} of each score is kept",
            "met": all(min(shares.values()) >= MIN_QUALITY_KEPT for shares in kept.values()),
            "values": {"k1": kept, "threshold": MIN_QUALITY_KEPT},
            "figures": "; ".join(
                f"{dataset_label(name)} {shares['trigram_share']:.0%} of trigram share, "
                f"{shares['distinct_2']:.0%} of distinct-2"
                for name, shares in kept.items()
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


def quality_kept(scores: dict) -> dict[str, float]:
    """Final score / score after the dataset's own stage, for each score of generated text."""
    return {score: scores["final"][score] / value if value else 1.0 for score, value in scores["own"].items()}
