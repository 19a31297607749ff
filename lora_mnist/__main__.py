"""`python -m lora_mnist` is `lora-mnist`."""

from typing import NoReturn

from lora_mnist.cli.start import collect_rarely, leave, listen, watch


def script() -> NoReturn:
    """`lora-mnist` on the command line."""
    listen()
    watch()
    collect_rarely()
    from lora_mnist.cli.main import main  # from here on it takes time

    leave(main())


if __name__ == "__main__":
    script()
