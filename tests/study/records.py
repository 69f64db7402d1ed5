"""Made-up records of the study, and how its tables are read."""


def record(method, rate, seed, *losses, accuracies=None, setting=None):
    """A run that learned datasets a, b and so on; `losses` and `accuracies` are those of one stage each."""
    accuracies = accuracies or [[0.5] * len(row) for row in losses]
    evaluations = [
        {name: {split: list(scores) for split in ("validation", "test")} for name, *scores in zip("abcdefg", *row)}
        for row in zip(losses, accuracies)
    ]
    return {
        "method": method, "seed": seed, "learning_rate": rate, "setting": setting or {},
        "evaluations": evaluations, "updated_fraction": 1.0, "seconds": 1.0,
    }  # fmt: skip


def rows_of(text, head):
    """The cells of the table whose first row begins with the cells `head`, by the first cell of each row."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in [*text.splitlines(), ""]]
    start = next(place for place, cells in enumerate(lines) if cells[: len(head)] == head)
    return {cells[0]: cells[1:] for cells in lines[start : lines.index([], start)]}
