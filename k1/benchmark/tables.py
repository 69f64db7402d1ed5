"""What the benchmark measured, as Markdown tables."""

from k1.benchmark.contestants import K1
from k1.benchmark.timing import Spread
from k1.report.tables import format_table

MEGABYTE = 1e6


def with_spread(values: Spread | None, digits: int = 2, factor: float = 1.0) -> str:
    """`median (lower quartile to upper quartile)` of `values` times `factor`; nothing of None."""
    if values is None:
        return ""
    low, median, high = (f"{factor * values[which]:,.{digits}f}" for which in ("low", "median", "high"))
    return f"{median} ({low} to {high})"


def format_benchmark(results: dict) -> str:
    """All tables of `results`, see `__main__`."""
    shapes = results["shapes"]
    sections = [f"On {results['threads']} of {results['cores']} CPU threads; medians and, in brackets, quartiles."]
    for name, found in shapes.items():
        if "steps" in found:
            title = f"Shape `{name}`: {found['parameters']:,} parameters, {found['tokens_per_step']:,} tokens a step."
            sections += [title, steps_table(found), stage_table(found["stage"])]
    return "\n\n".join([*sections, "Sparse updates in the optimizer, AdamW, alone.", optimizer_table(shapes)])


def steps_table(found: dict) -> str:
    """The contestants by the time of their steps."""
    rows = [["Training", "Tokens/s", "Step / baseline's", "Rewriting / baseline's step", "In sum"]]
    for name, record in found["steps"].items():
        speed = f"{found['tokens_per_step'] / record['seconds']['median']:,.0f}"
        ratios = [with_spread(record.get(key)) for key in ("ratio", "rewriting", "in_sum")]
        rows.append([name, speed, *ratios])
    return format_table(rows)


def stage_table(stage: dict) -> str:
    """A later stage of the baseline and of K-1 by what its time goes into, and the size of its checkpoint."""
    parts = list(stage["seconds"][K1])
    rows = [["Later stage, seconds", *parts, "Sum / baseline's", "Checkpoint MB"]]
    for name, seconds in stage["seconds"].items():
        spent = [f"{seconds[part]['median']:.2f}" if part in seconds else "" for part in parts]
        whole = with_spread(stage["ratio"]) if name == K1 else ""
        rows.append([name, *spent, whole, f"{stage['checkpoint_bytes'][name] / MEGABYTE:.2f}"])
    return format_table(rows)


def optimizer_table(shapes: dict) -> str:
    """Shapes by the time and memory that sparse updates take in the optimizer."""
    head = ["Shape", "Parameters", "AdamW, ms", "Step / AdamW's", "Training step / dense one", "Bytes a parameter more"]
    rows = [head]
    for name, found in shapes.items():
        record = found["optimizer"]
        rows.append([
            f"`{name}`", f"{found['parameters']:,}", with_spread(record["adamw_seconds"], 1, 1e3),
            with_spread(record["ratio"]), with_spread(record.get("step_ratio"), 3),
            f"{record['bytes_per_parameter']:.2f}",
        ])  # fmt: skip
    return format_table(rows)
