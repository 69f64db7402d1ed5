"""Continue prompts of every domain with the K-1 model; the same command prints the same bytes."""

import k1


@k1.command
def main() -> None:
    arguments = k1.parse_generation_arguments(__doc__, method="k1")
    k1.print_continuations("k1", arguments)


if __name__ == "__main__":
    main()
