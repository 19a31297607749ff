"""What docs/commands.md shows runs as it stands there, copied in its order into one shell."""

import os

from tests.test_readme import BIN, COMMANDS, run_all, script_of


def test_the_commands_page_runs_in_its_order(tmp_path):
    run_all(script_of(COMMANDS), tmp_path, LORA_MNIST_DATA=str(tmp_path), PATH=f"{BIN}:{os.environ['PATH']}")
