"""k1: does a language model that updates 51% of its parameters per step forget less than one that updates all?"""

import sys
from importlib import import_module

from k1.errors import command, quiet_excepthook

# Public names and where they live: what programs of others take, and what the scripts do.
LIBRARY = {"sparse_updates": "k1.sparse", "Rehearsal": "k1.rehearsal", "K1Callback": "k1.callback"}
MODULES = LIBRARY | {
    "parse_training_flags": "k1.config",
    "configure_torch": "k1.model",
    "DataLoader": "k1.data.loader",
    "require_distinct": "k1.data.loader",
    "load_checkpoint": "k1.checkpoints",
    "Learner": "k1.stages",
    "stage_outputs": "k1.stages",
    "parse_generation_arguments": "k1.report.generation_arguments",
    "print_continuations": "k1.report.generation",
}

__all__ = ["command", *MODULES]

if " -m k1." in " ".join(sys.orig_argv):
    sys.excepthook = quiet_excepthook


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for: the libraries behind some of them take seconds."""
    if name not in MODULES:
        raise AttributeError(f"module 'k1' has no attribute '{name}'")
    before = sys.excepthook
    if name not in LIBRARY:  # of a script, which ends in one line if this fails or is stopped
        sys.excepthook = quiet_excepthook
    value = getattr(import_module(MODULES[name]), name)
    sys.excepthook = before
    return value


def __dir__() -> list[str]:
    return __all__
