"""What the benchmark measured, as Markdown tables."""

from k1.benchmark.contestants import K1
from k1.benchmark.timing import Spread
from k1.report.tables import format_table, rows_of


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
    columns = {
        "Tokens/s": lambda record: f"{found['tokens_per_step'] / record['seconds']['median']:,.0f}",
        "Step / baseline's": lambda record: with_spread(record["ratio"]),
        "Rewriting / baseline's step": lambda record: with_spread(record.get("rewriting")),
        "In sum": lambda record: with_spread(record.get("in_sum")),
    }
    return format_table(rows_of("Training", found["steps"].items(), columns.items()))


def stage_table(stage: dict) -> str:
    """A later stage of the baseline and of K-1 by what its time goes into, and the size of its checkpoint."""
    columns = {
        part: lambda name, part=part: (
            f"{found[part]['median']:.2f}" if part in (found := stage["seconds"][name]) else ""
        )
        for part in stage["seconds"][K1]
    }
    columns["Sum / baseline's"] = lambda name: with_spread(stage["ratio"]) if name == K1 else ""
    columns["Checkpoint MB"] = lambda name: f"{stage['checkpoint_bytes'][name] / 1e6:.2f}"
    return format_table(rows_of("Later stage, seconds", [(name, name) for name in stage["seconds"]], columns.items()))


def optimizer_table(shapes: dict) -> str:
    """Shapes by the time and memory that sparse updates take in the optimizer."""
    columns = {
        "Parameters": lambda found: f"{found['parameters']:,}",
        "AdamW, ms": lambda found: with_spread(found["optimizer"]["adamw_seconds"], 1, 1e3),
        "Step / AdamW's": lambda found: with_spread(found["optimizer"]["ratio"]),
        "Training step / dense one": lambda found: with_spread(found["optimizer"].get("step_ratio"), 3),
        "Bytes a parameter more": lambda found: f"{found['optimizer']['bytes_per_parameter']:.2f}",
    }
    return format_table(rows_of("Shape", [(f"`{name}`", found) for name, found in shapes.items()], columns.items()))
