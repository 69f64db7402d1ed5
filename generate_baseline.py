"""Continue prompts of every domain with the baseline model; the same command prints the same bytes."""

import k1


@k1.command
def main() -> None:
    arguments = k1.parse_generation_arguments(__doc__, method="baseline")
    k1.print_continuations("baseline", arguments)


if __name__ == "__main__":
    main()
