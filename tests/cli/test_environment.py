"""Commands in the environments in which people run them."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import lora_mnist


def test_an_encoding_without_arrows_has_likenesses_of_them(finished_run, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    done = lora_mnist("adapters", "--run", finished_run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "->" in done.stdout
    assert "?" not in done.stdout


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "Foo"])
def test_plots_ask_for_no_backend_and_for_no_style_of_the_users(run_copy, tmp_path, monkeypatch, backend):
    """As Jupyter sets one for every command; and a matplotlibrc for other plots, with LaTeX that is not there."""
    monkeypatch.setenv("MPLBACKEND", backend)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    pictures = []
    rc = "text.usetex: True\nfont.size: 30\nimage.origin: lower\nsavefig.bbox: tight\n"
    for content in ("", rc):
        (tmp_path / "matplotlibrc").write_text(content)
        done = lora_mnist("report", "--run", run_copy)
        assert done.returncode == 0, done.stderr
        pictures.append({file.name: file.read_bytes() for file in (run_copy / "report").glob("*.[ps][nv]g")})
    assert pictures[0] == pictures[1]
    assert pictures[0]


def test_help_has_its_text_without_docstrings():
    plain, stripped = (lora_mnist("finetune", "--help", python=flags) for flags in ((), ("-OO",)))
    assert stripped.returncode == 0
    assert stripped.stdout == plain.stdout


def test_a_tilde_is_the_home_folder(cli, fails, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LORA_MNIST_DATA", "~/data")
    monkeypatch.chdir(tmp_path)
    fails(3, "pretrain", "--dataset", "mnist", "--offline", "--run=~/x", says=str(tmp_path / "data"))
    assert not Path("~").exists()
    assert f"There is no base in {tmp_path / 'x'}" in cli("evaluate", "--run=~/x")[2]


def test_no_process_imports_what_lies_in_the_working_folder(finished_run, tmp_path):
    for name in ("http", "types", "socket", "queue", "torch", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user')")
    script = Path(sys.executable).with_name("lora-mnist")
    options = ("--digit", "3", "--rank", "1", "--seed", "0-1", "--engine", "local", "--set", "finetune.steps=20")
    command = [script, "sweep", "--run", finished_run, "--out", tmp_path / "sweep", *options]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
