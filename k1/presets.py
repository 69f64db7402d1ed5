"""Sizes of the experiment, its stages and the files they write."""

from dataclasses import dataclass

STAGES = 3


@dataclass(frozen=True)
class Preset:
    """One size of the experiment; all arms share all of it but the learning rates.

    `learning_rates` of an arm are that of stage 1, which does not rehearse, and that of all later stages.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    vocabulary_size: int
    seq_length: int
    batch_size: int
    gradient_accumulation_steps: int
    max_steps: tuple[int, int, int]
    warmup_steps: int
    learning_rates: dict[str, tuple[float, float]]
    evaluation_tokens: int
    max_documents: int
    rehearsal: float = 0.25
    rehearsal_sequences: int = 512
    rehearsal_interval: int = 50
    rehearsal_weight: float = 3.0
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


PRESETS = {
    "smoke": Preset(
        hidden_size=32, intermediate_size=88, layers=2, heads=2, vocabulary_size=512,
        seq_length=128, batch_size=8, gradient_accumulation_steps=1,
        max_steps=(60, 30, 30), warmup_steps=5, evaluation_tokens=8_192, max_documents=200,
        learning_rates=dict.fromkeys(("baseline", "sparse", "baseline_rehearsal", "k1"), (1e-2, 1e-2)),
    ),
    "quick": Preset(
        hidden_size=128, intermediate_size=344, layers=4, heads=4, vocabulary_size=2_048,
        seq_length=128, batch_size=8, gradient_accumulation_steps=1,
        max_steps=(1_200, 600, 600), warmup_steps=100, evaluation_tokens=65_536, max_documents=20_000,
        learning_rates={
            "baseline": (3e-3, 5e-4), "sparse": (3e-3, 5e-4),
            "baseline_rehearsal": (3e-3, 2.5e-3), "k1": (3e-3, 2.5e-3),
        },
    ),
    "study": Preset(
        hidden_size=64, intermediate_size=172, layers=2, heads=2, vocabulary_size=1_024,
        seq_length=128, batch_size=16, gradient_accumulation_steps=1,
        max_steps=(300, 150, 150), warmup_steps=25, evaluation_tokens=16_384, max_documents=20_000,
        learning_rates={
            "baseline": (4e-3, 1e-3), "sparse": (4e-3, 1e-3), "baseline_rehearsal": (4e-3, 3e-3), "k1": (4e-3, 3e-3),
        },
    ),
    "full": Preset(
        hidden_size=768, intermediate_size=2_048, layers=12, heads=12, vocabulary_size=32_000,
        seq_length=1_024, batch_size=8, gradient_accumulation_steps=8,
        max_steps=(600, 600, 600), warmup_steps=60, evaluation_tokens=1_048_576, max_documents=200_000,
        learning_rates=dict.fromkeys(("baseline", "sparse", "baseline_rehearsal", "k1"), (6e-4, 3e-4)),
    ),
}  # fmt: skip
# The arms of the experiment, two by two: all parameters or 51% of them, without rehearsal or with it.
ARMS = {
    "baseline": "baseline",
    "sparse": "51% alone",
    "baseline_rehearsal": "baseline + rehearsal",
    "k1": "K-1",
}
# Which method's scripts train an arm, and whether it rehearses.
ARM_KINDS = {
    "baseline": ("baseline", False),
    "sparse": ("k1", False),
    "baseline_rehearsal": ("baseline", True),
    "k1": ("k1", True),
}
FILES = {
    "baseline": ("baseline_dataset1.pt", "baseline_dataset2.pt", "baseline_final.pt"),
    "k1": ("k1_dataset1.pt", "k1_dataset2.pt", "k1_final.pt"),
}
# By arm; stage 1 has nothing to rehearse, so that two arms share it.
ARM_FILES = {
    "baseline": FILES["baseline"],
    "sparse": (FILES["k1"][0], "sparse_dataset2.pt", "sparse_final.pt"),
    "baseline_rehearsal": (FILES["baseline"][0], "baseline_rehearsal_dataset2.pt", "baseline_rehearsal_final.pt"),
    "k1": FILES["k1"],
}
SCRIPTS = {
    "baseline": ("train_baseline_all.py",) * 3,
    "sparse": (
        "train_k1_dataset1.py", "train_k1_dataset2.py --rehearsal 0", "train_k1_dataset3.py --rehearsal 0",
    ),
    "baseline_rehearsal": ("train_baseline_all.py", *("train_baseline_all.py --rehearsal SHARE",) * 2),
    "k1": ("train_k1_dataset1.py", "train_k1_dataset2.py", "train_k1_dataset3.py"),
}  # fmt: skip
# Far above any use; a seed beyond it would overflow torch's generators.
MAXIMUM = 2**32 - 1


def arm_of(method: str, rehearses: bool) -> str:
    """The arm whose scripts are those of `method`, with rehearsal or without; a key of `ARMS`."""
    return next(arm for arm, kind in ARM_KINDS.items() if kind == (method, rehearses))
