"""`python -m lora_mnist` is `lora-mnist`."""

import gc
import os
import sys
from typing import NoReturn

from lora_mnist.cli.start import listen, watch


def script() -> NoReturn:
    """`lora-mnist` on the command line."""
    listen()
    watch()
    gc.set_threshold(50_000, 20, 20)  # of `verify`, a tenth went to looking for rubbish in what imports make to stay
    from lora_mnist.cli.main import main  # from here on it takes time

    code = main()
    if code > 128:  # interrupted: all is cleaned up, and Python would take most of a second to take torch apart
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    script()
