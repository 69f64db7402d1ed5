"""Continue prompts of every domain with the baseline model; the same command prints the same bytes."""

from k1 import command, parse_generation_arguments, print_continuations


@command
def main() -> None:
    print_continuations("baseline", parse_generation_arguments(__doc__, method="baseline"))


if __name__ == "__main__":
    main()
