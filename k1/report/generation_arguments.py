"""The command line of the two generate scripts; apart from the rest, so that `--help` waits for no library."""

import argparse
from pathlib import Path

from k1.errors import Parser, user_path
from k1.experiment import FILES
from k1.flag_types import at_least, checked

NEW_TOKENS = 60
TEMPERATURE = 0.8
TOP_K = 40


def parse_generation_arguments(description: str, method: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of a generate script; exits with status 2 when a value is out of range."""
    parser = Parser(description=description)
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, help=f"checkpoint files (default: {FILES[method][-1]} in --models_dir)"
    )
    parser.add_argument(
        "--stages", action="store_true",
        help=f"the checkpoints of all stages in --models_dir, one after the other: {', '.join(FILES[method])}",
    )  # fmt: skip
    parser.add_argument("--prompt", action="append", help="text to continue; may be repeated (default: fixed prompts)")
    for flag, kind, default, meaning in (
        ("--max_new_tokens", checked(int, at_least(1)), NEW_TOKENS, "tokens to generate"),
        ("--temperature", checked(float, at_least(0)), TEMPERATURE, "0 is greedy"),
        ("--top_k", checked(int, at_least(0)), TOP_K, "0 is the whole vocabulary"),
        ("--seed", checked(int, at_least(0)), 0, "of the sampling"),
        ("--models_dir", user_path, Path("models"), "folder"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: auto)")
    arguments = parser.parse_args(argv)
    if any("\ud800" <= character <= "\udfff" for prompt in arguments.prompt or [] for character in prompt):
        parser.error("--prompt must be UTF-8 text")  # the shell hands over other bytes as lone surrogates
    if arguments.stages and arguments.checkpoints:
        parser.error("--stages names the checkpoints itself; leave the files out, or --stages")
    files = FILES[method] if arguments.stages else FILES[method][-1:]
    arguments.checkpoints = arguments.checkpoints or [arguments.models_dir / file for file in files]
    return arguments
