"""What README and docs/commands.md show runs as it stands there, each copied in its order into one shell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README, COMMANDS = ROOT / "README.md", ROOT / "docs" / "commands.md"
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
LARGE = ("lora-mnist run --config rare --dataset mnist-5k", "lora-mnist run --config classic --dataset mnist-5k")


def script_of(page: Path) -> str:
    """Every block of `page`, in its order, for one shell that stops at the first failure."""
    parts = ["set -e"]
    for language, code in BLOCK.findall(page.read_text()):
        parts.append(code if language == "sh" else f"python - <<'END'\n{code}END")
    return "\n".join(parts)


def run_all(script: str, folder: Path, **env: str) -> None:
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=inherited | {"BROWSER": "true", "PYTHONDONTWRITEBYTECODE": ""} | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture
def clone(tmp_path):
    """What git would hand to somebody else: no virtual environment, no data, no runs."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_the_readme_runs_in_its_order_on_a_fresh_clone(clone):
    """On the images that come with the package, which take a fraction of the time that MNIST does; and with pip
    compiling no module, as the first command that needs one does: for its options that say no, 0 is yes."""
    run_all(script_of(README), clone, LORA_MNIST_DATA="", LORA_MNIST_OFFLINE="1", PIP_NO_COMPILE="0")
    assert (clone / "runs" / "mine" / "report" / "index.html").is_file()
    assert (clone / "runs" / "library" / "mine" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_commands_page_runs_in_its_order(tmp_path):
    """The two commands that train a base of the full size get `--hidden 40,20`: it is trained in seconds, and so is
    all that later commands make of it. Nothing else is changed."""
    script = script_of(COMMANDS)
    for command in LARGE:
        assert script.count(command) == 1
        script = script.replace(command, f"{command} --hidden 40,20")
    run_all(script, tmp_path, LORA_MNIST_DATA=str(tmp_path), PATH=f"{BIN}:{os.environ['PATH']}")


def test_every_option_in_a_command_exists():
    import typer

    from lora_mnist.cli.main import app

    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^lora-mnist ([\w-]+)([^#\n]*)", README.read_text() + COMMANDS.read_text(), re.MULTILINE)
    for name, rest in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known
    for page in (README, COMMANDS):
        rows = re.findall(r"^\| (`[\w`, -]+`) \|", page.read_text(), re.MULTILINE)
        assert set(re.findall(r"[\w-]+", " ".join(rows))) >= set(commands), page.name
