"""What the README shows runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
    assert names["original"].shape == (32, 20, 64)
    assert 0 < names["lost"]["linear1"].error < 1
    assert (tmp_path / "adapters" / "both" / "adapter_config.json").is_file()


def test_every_option_in_a_command_exists():
    import typer

    from lora_mnist.cli.commands import app

    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^lora-mnist (\w+)([^#\n]*)", README, re.MULTILINE)
    assert {name for name, _ in lines} == set(commands)
    for name, rest in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
