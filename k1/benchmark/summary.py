"""What the benchmark measured, as Markdown tables."""

import statistics

from k1.benchmark.contestants import ADAMW, BASELINE, CONTESTANTS, K1, SPARSE, STEPS
from k1.report.tables import format_table, rows_of


def with_spread(values: list[float], digits: int = 2) -> str:
    """The median of `values`, at least one, and in brackets their quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(values: list[float], reference: list[float]) -> list[float]:
    """`values` as multiples of `reference` in the same round."""
    return [value / other for value, other in zip(values, reference, strict=True)]


def format_benchmark(results: dict) -> str:
    """All tables of `results`, see `__main__`."""
    sections = [f"On {results['threads']} of {results['cores']} CPU threads; medians and, in brackets, quartiles."]
    for name, found in results["shapes"].items():
        if found["stage"]:
            title = f"Shape `{name}`: {found['parameters']:,} parameters, {found['tokens_per_step']:,} tokens a step."
            sections += [title, steps_table(found), stage_table(found)]
    return "\n\n".join(
        [*sections, "Sparse updates in the optimizer, AdamW, alone.", optimizer_table(results["shapes"])]
    )


def steps_table(found: dict) -> str:
    """The contestants by the time of their steps."""
    columns = {
        "Tokens/s": lambda values: f"{STEPS * found['tokens_per_step'] / statistics.median(values):,.0f}",
        "Step / baseline's": lambda values: with_spread(ratios(values, found["seconds"][BASELINE])),
    }
    steps = [(name, found["seconds"][name]) for name in CONTESTANTS]
    return format_table(rows_of("Training", steps, columns.items()))


def stage_table(found: dict) -> str:
    """A later stage of the baseline and of K-1 by what its time goes into, and the size of its checkpoint."""
    sums = {arm: [sum(values) for values in zip(*parts.values())] for arm, parts in found["stage"].items()}

    def cell(part: str):
        return lambda arm: f"{statistics.median(parts[part]):.2f}" if part in (parts := found["stage"][arm]) else ""

    columns = {
        **{part: cell(part) for part in found["stage"][K1]},
        "sum": lambda arm: f"{statistics.median(sums[arm]):.2f}",
        "Sum / baseline's": lambda arm: with_spread(ratios(sums[arm], sums[BASELINE])) if arm == K1 else "",
        "Checkpoint MB": lambda arm: f"{found['checkpoint_bytes'][arm] / 1e6:.2f}",
    }
    return format_table(rows_of("Later stage, seconds", [(arm, arm) for arm in sums], columns.items()))


def optimizer_table(shapes: dict) -> str:
    """Shapes by the time and memory that sparse updates take in the optimizer."""

    def of_training_step(found: dict) -> str:
        if not found["stage"]:
            return ""
        dense = statistics.median(found["seconds"][BASELINE]) / STEPS
        both = zip(found["seconds"][SPARSE], found["seconds"][ADAMW])
        return with_spread([1 + (sparse - adamw) / dense for sparse, adamw in both], 3)

    columns = {
        "Parameters": lambda found: f"{found['parameters']:,}",
        "AdamW, ms": lambda found: with_spread([1e3 * seconds for seconds in found["seconds"][ADAMW]], 1),
        "Step / AdamW's": lambda found: with_spread(ratios(found["seconds"][SPARSE], found["seconds"][ADAMW])),
        "Training step / dense one": of_training_step,
        "Bytes a parameter more": lambda found: f"{found['additional_bytes'] / found['parameters']:.2f}",
    }
    return format_table(rows_of("Shape", [(f"`{name}`", found) for name, found in shapes.items()], columns.items()))
