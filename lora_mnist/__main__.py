"""`python -m lora_mnist` is `lora-mnist`."""

from lora_mnist.cli.commands import script

script()
