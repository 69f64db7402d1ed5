"""Made-up records of the study and of the benchmark."""


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


def benchmark_record():
    """A made-up record of the benchmark: two shapes that were trained, and the optimizer alone at a third."""
    kept = {"weights": 4_000, "gradients": 4_000, "bases": 0, "importance": 0, "optimizer": 8_000}
    times = {"baseline": 1.0, "K-1, stage 1": 1.2, "K-1, later stages": 1.4, "bare PyTorch loop": 0.9}

    def spread(value):
        return {"median": value, "low": 0.9 * value, "high": 1.1 * value}

    contestants = {
        name: {
            "parameters": 1_000, "tokens_per_second": spread(2_048 / time), "time_ratio": spread(time),
            "losses": [7.0, 6.0], "first_step": time, "seconds": [time, time], "peak_bytes": 10**8, "kept_bytes": kept,
        }
        for name, time in times.items()
    }  # fmt: skip
    kinds = {
        name: {
            "parameters": 10**8, "peak_bytes": peak, "kept_bytes": kept, "milliseconds_per_million": spread(1.0),
            "time_ratio": spread(2.0),
        }
        for name, peak in {"baseline": 2 * 10**9, "K-1, stage 1": 5 * 10**9}.items()
    }  # fmt: skip
    training = {"contestants": contestants, "stages": {}, "rounds": 2}
    return {
        "threads": 1, "cores": 2, "versions": {}, "missing": {}, "start_up": {"python3": spread(0.1)},
        "shapes": {
            "quick": {"training": training}, "wide": {"training": training},
            "full": {"optimizer": {"kinds": kinds, "bytes_per_token": 10**6, "rounds": 2}},
        },
    }  # fmt: skip
