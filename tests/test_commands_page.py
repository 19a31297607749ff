"""What docs/commands.md shows runs as it stands there, copied in its order into one shell.

The two commands that train a base of the full size get `--hidden 40,20`: it is trained in seconds, and so is all that
later commands make of it. Nothing else is changed.
"""

import os

import pytest

from tests.test_readme import BIN, COMMANDS, run_all, script_of

LARGE = ("lora-mnist run --config rare --dataset mnist-5k", "lora-mnist run --config classic --dataset mnist-5k")


@pytest.mark.slow
def test_the_commands_page_runs_in_its_order(tmp_path):
    script = script_of(COMMANDS)
    for command in LARGE:
        assert script.count(command) == 1
        script = script.replace(command, f"{command} --hidden 40,20")
    run_all(script, tmp_path, LORA_MNIST_DATA=str(tmp_path), PATH=f"{BIN}:{os.environ['PATH']}")
