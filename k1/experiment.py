"""The experiment: its arms, its stages, and the scripts and files of both; apart, as it waits for no library."""

# The arms, two by two: all parameters or 51% of them, without rehearsal or with it.
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
# A row a stage: how the names of its files end, and K-1's script.
STAGE_TABLE = {
    "dataset1": "train_k1_dataset1.py",
    "dataset2": "train_k1_dataset2.py",
    "final": "train_k1_dataset3.py",
}
STAGES = len(STAGE_TABLE)
# By arm. Stage 1 has nothing to rehearse, so that two arms share it.
ARM_FILES, SCRIPTS = {}, {}
for arm, (method, rehearses) in ARM_KINDS.items():
    first, *later = STAGE_TABLE.values() if method == "k1" else ["train_baseline_all.py"] * STAGES
    flags = "" if arm == method else " --rehearsal SHARE" if rehearses else " --rehearsal 0"
    SCRIPTS[arm] = (first, *(script + flags for script in later))
    ARM_FILES[arm] = tuple(f"{arm if stage else method}_{end}.pt" for stage, end in enumerate(STAGE_TABLE))
# The files of the arms that the scripts train unless they are told otherwise.
FILES = {method: ARM_FILES[method] for method in ("baseline", "k1")}


def arm_of(method: str, rehearses: bool) -> str:
    """The arm whose scripts are those of `method`, with rehearsal or without; a key of `ARMS`."""
    return next(arm for arm, kind in ARM_KINDS.items() if kind == (method, rehearses))
