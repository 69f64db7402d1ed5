"""Continue prompts of every domain with the K-1 model; the same command prints the same bytes."""

from k1 import command, parse_generation_arguments, print_continuations


@command
def main() -> None:
    print_continuations("k1", parse_generation_arguments(__doc__, method="k1"))


if __name__ == "__main__":
    main()
