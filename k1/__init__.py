"""k1: does a language model that updates 51% of its parameters per step forget less than one that updates all?"""

from k1.errors import command, quiet_interrupts

with quiet_interrupts():
    from k1.checkpoint import (
        load_checkpoint,
        load_finished_stage,
        output_path,
        restore_model,
        save_checkpoint,
        stage_checkpoint,
    )
    from k1.config import parse_training_flags
    from k1.data import DataLoader, load_datasets, require_distinct
    from k1.eigenbasis import enter_eigenbasis
    from k1.evaluate import evaluate
    from k1.generate import parse_generation_arguments, print_continuations
    from k1.importance import add_importance, fisher_information, sample_batches
    from k1.model import build_model, configure_torch, model_config
    from k1.resume import ResumeFile
    from k1.tables import print_evaluation
    from k1.tokenizer import load_tokenizer, train_tokenizer
    from k1.train import train

__all__ = [
    "DataLoader",
    "ResumeFile",
    "add_importance",
    "build_model",
    "command",
    "configure_torch",
    "enter_eigenbasis",
    "evaluate",
    "fisher_information",
    "load_checkpoint",
    "load_datasets",
    "load_finished_stage",
    "load_tokenizer",
    "model_config",
    "output_path",
    "parse_generation_arguments",
    "parse_training_flags",
    "print_continuations",
    "print_evaluation",
    "require_distinct",
    "restore_model",
    "sample_batches",
    "save_checkpoint",
    "stage_checkpoint",
    "train",
    "train_tokenizer",
]
