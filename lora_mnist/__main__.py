"""`python -m lora_mnist` is `lora-mnist`."""

import os
import sys
from typing import NoReturn

from lora_mnist.cli.start import collect_rarely, listen, watch


def script() -> NoReturn:
    """`lora-mnist` on the command line."""
    listen()
    watch()
    collect_rarely()
    from lora_mnist.cli.main import main  # from here on it takes time

    code = main()
    if code > 128:  # interrupted: all is cleaned up, and Python would take most of a second to take torch apart
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    script()
