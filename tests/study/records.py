"""Made-up records of the study, and how its tables are read."""


def record(method, rate, seed, *losses, accuracies=None, setting=None):
    """A run that learned datasets a, b and so on; `losses` and `accuracies` are those of one stage each."""

    def matrix(rows):
        return [[None] * len(losses), *([*row, *[None] * (len(losses) - len(row))] for row in rows)]

    return {
        "method": method, "seed": seed, "learning_rate": rate, "setting": setting or {},
        "datasets": list("abcdefg"[: len(losses)]), "loss_matrix": matrix(losses),
        "validation_loss_matrix": matrix(losses),
        "accuracy_matrix": matrix(accuracies or [[0.5] * len(row) for row in losses]),
        "updated_fraction": 1.0, "seconds": 1.0,
    }  # fmt: skip


def rows_of(text, head):
    """The cells of the table whose first row begins with the cells `head`, by the first cell of each row."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in [*text.splitlines(), ""]]
    start = next(place for place, cells in enumerate(lines) if cells[: len(head)] == head)
    return {cells[0]: cells[1:] for cells in lines[start : lines.index([], start)]}
