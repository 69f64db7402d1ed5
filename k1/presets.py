"""Sizes of the experiment, its stages and the files they write."""

from dataclasses import dataclass

UPDATE_FRACTION = 0.51
STAGES = 3
SELECTION = "error_feedback"  # K-1's policy


@dataclass(frozen=True)
class Preset:
    """One size of the experiment; K-1 and baseline share all of it but the learning rates.

    `consolidation`, `interpolation` and `gain_floor` (kappa) are K-1's from stage 2,
    see `k1.sparse.optimizer`, `k1.training.loop` and `k1.sparse.selection`.
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
    learning_rates: dict[str, tuple[float, float, float]]
    evaluation_tokens: int
    max_documents: int
    consolidation: float
    interpolation: float = 0.93
    rehearsal: float = 0.25
    rehearsal_sequences: int = 512
    rehearsal_interval: int = 25
    rehearsal_weight: float = 3.0
    gain_floor: float = 0.1
    importance_batches: int = 20
    max_basis_dim: int = 2_048
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


PRESETS = {
    "smoke": Preset(
        hidden_size=32, intermediate_size=88, layers=2, heads=2, vocabulary_size=512,
        seq_length=128, batch_size=8, gradient_accumulation_steps=1,
        max_steps=(60, 30, 30), warmup_steps=5,
        learning_rates={arm: (1e-2, 1e-2, 1e-2) for arm in ("k1", "baseline", "baseline_rehearsal")},
        evaluation_tokens=8_192, max_documents=200, consolidation=0.5, importance_batches=10,
    ),
    "quick": Preset(
        hidden_size=128, intermediate_size=344, layers=4, heads=4, vocabulary_size=2_048,
        seq_length=128, batch_size=8, gradient_accumulation_steps=1,
        max_steps=(1_200, 600, 600), warmup_steps=100,
        learning_rates={
            "k1": (3e-3, 4e-3, 4e-3), "baseline": (3e-3, 5e-4, 5e-4), "baseline_rehearsal": (3e-3, 4e-3, 4e-3),
        },
        evaluation_tokens=65_536, max_documents=20_000, consolidation=0.5,
        rehearsal_interval=50, rehearsal_weight=2.0,
    ),
    "study": Preset(
        hidden_size=64, intermediate_size=172, layers=2, heads=2, vocabulary_size=1_024,
        seq_length=128, batch_size=16, gradient_accumulation_steps=1,
        max_steps=(300, 150, 150), warmup_steps=25,
        learning_rates={
            "k1": (4e-3, 3e-3, 3e-3), "baseline": (4e-3, 1e-3, 1e-3), "baseline_rehearsal": (4e-3, 3e-3, 3e-3),
        },
        evaluation_tokens=16_384, max_documents=20_000, consolidation=0.5,
    ),
    "full": Preset(
        hidden_size=768, intermediate_size=2_048, layers=12, heads=12, vocabulary_size=32_000,
        seq_length=1_024, batch_size=8, gradient_accumulation_steps=8,
        max_steps=(600, 600, 600), warmup_steps=60,
        learning_rates={arm: (6e-4, 3e-4, 3e-4) for arm in ("k1", "baseline", "baseline_rehearsal")},
        evaluation_tokens=1_048_576, max_documents=200_000, consolidation=0.5,
    ),
}  # fmt: skip
FILES = {
    "k1": ("k1_dataset1.pt", "k1_dataset2.pt", "k1_final.pt"),
    "baseline": ("baseline_dataset1.pt", "baseline_dataset2.pt", "baseline_final.pt"),
}
# By arm of the experiment; the baseline with rehearsal goes on from the baseline's first stage.
ARM_FILES = {
    **FILES,
    "baseline_rehearsal": (FILES["baseline"][0], "baseline_rehearsal_dataset2.pt", "baseline_rehearsal_final.pt"),
}
SCRIPTS = {
    "k1": ("train_k1_dataset1.py", "train_k1_dataset2.py", "train_k1_dataset3.py"),
    "baseline": ("train_baseline_all.py",) * 3,
    "baseline_rehearsal": ("train_baseline_all.py", *("train_baseline_all.py --rehearsal SHARE",) * 2),
}
# Far above any use; a seed beyond it would overflow torch's generators.
MAXIMUM = 2**32 - 1
