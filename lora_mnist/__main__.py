"""`python -m lora_mnist` is `lora-mnist`."""

import gc
import os
import sys
from typing import NoReturn

from lora_mnist.cli.errors import handle_signals


def script() -> NoReturn:
    """`lora-mnist` on the command line."""
    handle_signals()
    gc.set_threshold(50_000, 20, 20)  # a tenth of `verify` went to looking for garbage among imported modules
    from lora_mnist.cli.main import main  # from here on it takes time

    code = main()
    if code > 128:  # interrupted: all is cleaned up, and taking torch apart takes half a second
        os._exit(code)
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    script()
