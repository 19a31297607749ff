"""`python -m lora_mnist` is `lora-mnist`."""

import sys
from typing import NoReturn

from lora_mnist.cli.start import listen, watch


def script() -> NoReturn:
    """`lora-mnist` on the command line."""
    listen()
    watch()
    from lora_mnist.cli.main import main  # from here on it takes time

    sys.exit(main())


if __name__ == "__main__":
    script()
