"""python -m rmkit: the command `rmkit`, also as torchrun -m and accelerate launch -m start it."""

import sys

from rmkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
