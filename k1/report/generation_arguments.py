"""The command line of the two generate scripts; apart from the rest, so that `--help` waits for no library."""

import argparse
from pathlib import Path

from k1.errors import Parser, user_path
from k1.experiment import FILES
from k1.flag_types import MAXIMUM, at_least, checked

TEMPERATURE = 0.8
TOP_K = 40
# Dividing by less overflows float32.
MIN_TEMPERATURE = 1e-3


def parse_generation_arguments(description: str, method: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of a generate script; exits with status 2 when a value is out of range."""
    not_negative = checked(int, at_least(0))
    temperature = checked(
        float,
        (f"0 (greedy) or at least {MIN_TEMPERATURE}", lambda value: value == 0 or MIN_TEMPERATURE <= value <= MAXIMUM),
    )
    parser = Parser(description=description)
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, help=f"checkpoint files (default: {FILES[method][-1]} in --models_dir)"
    )
    parser.add_argument(
        "--stages", action="store_true",
        help=f"the checkpoints of all stages in --models_dir, one after the other: {', '.join(FILES[method])}",
    )  # fmt: skip
    parser.add_argument("--prompt", action="append", help="text to continue; may be repeated (default: fixed prompts)")
    parser.add_argument(
        "--max_new_tokens", type=checked(int, at_least(1)), default=60, help="tokens to generate (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=temperature, default=TEMPERATURE, help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument(
        "--top_k", type=not_negative, default=TOP_K, help="0 is the whole vocabulary (default: %(default)s)"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="of the sampling (default: %(default)s)")
    parser.add_argument("--models_dir", type=user_path, default=Path("models"), help="folder (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: auto)")
    arguments = parser.parse_args(argv)
    if any("\ud800" <= character <= "\udfff" for prompt in arguments.prompt or [] for character in prompt):
        parser.error("--prompt must be UTF-8 text")  # the shell hands over other bytes as lone surrogates
    if arguments.stages and arguments.checkpoints:
        parser.error("--stages names the checkpoints itself; leave the files out, or --stages")
    files = FILES[method] if arguments.stages else FILES[method][-1:]
    arguments.checkpoints = arguments.checkpoints or [arguments.models_dir / file for file in files]
    return arguments
