"""k1: does a language model that updates 51% of its parameters per step forget less than one that updates all?"""

import sys
from contextlib import nullcontext
from importlib import import_module

from k1.errors import command, quiet_excepthook, quiet_imports

# Where the public names live, in the order in which data flows.
PUBLIC = {
    "k1.config": ("parse_training_flags",),
    "k1.model": ("configure_torch",),
    "k1.data.loader": ("DataLoader", "require_distinct"),
    "k1.sparse": ("sparse_updates",),
    "k1.rehearsal": ("Rehearsal",),
    "k1.callback": ("K1Callback",),
    "k1.training.evaluation": ("evaluate",),
    "k1.training.trainer": ("StageTrainer",),
    "k1.checkpoints": ("load_checkpoint", "restore_model"),
    "k1.stages": ("Learner", "stage_outputs"),
    "k1.report.generation_arguments": ("parse_generation_arguments",),
    "k1.report.generation": ("print_continuations",),
}  # fmt: skip
# What programs of others take; Ctrl-C is theirs, also while it is imported.
LIBRARY = ("sparse_updates", "Rehearsal", "K1Callback")
MODULES = {name: module for module, names in PUBLIC.items() for name in names}

__all__ = ["command", *MODULES]

if " -m k1." in " ".join(sys.orig_argv):  # their imports may fail before `command` is reached
    sys.excepthook = quiet_excepthook


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for: the libraries behind some of them take seconds."""
    if name not in MODULES:
        raise AttributeError(f"module 'k1' has no attribute '{name}'")
    with nullcontext() if name in LIBRARY else quiet_imports():
        value = getattr(import_module(MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
