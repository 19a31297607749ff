"""What the README shows runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_runs(code):
    names: dict = {}
    exec(code, names)
    assert names["original"].shape == (32, 3)


def test_every_option_in_a_command_exists():
    import typer

    from lora_mnist.cli import app

    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^lora-mnist (\w+)([^#\n]*)", README, re.MULTILINE)
    assert {name for name, _ in lines} == set(commands)
    for name, rest in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
