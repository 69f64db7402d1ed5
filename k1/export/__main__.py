"""python3 -m k1.export CHECKPOINT DIR: write a checkpoint as a folder that transformers opens with from_pretrained."""

import sys
from pathlib import Path

from k1.checkpoints import load_checkpoint
from k1.errors import Parser, command
from k1.export.folder import export, require_free


@command
def main() -> None:
    parser = Parser(prog="python3 -m k1.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="e.g. models/k1_final.pt")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder to write; it must be new or empty")
    arguments = parser.parse_args()
    # Said before the checkpoint is read, which can take long.
    require_free(arguments.folder)
    export(load_checkpoint(arguments.checkpoint), arguments.folder)
    print(f"wrote {arguments.folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
