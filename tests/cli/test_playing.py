import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(cli, finished_run, monkeypatch, package):
    for name in list(sys.modules):
        if name.startswith((package, "lora_mnist.play")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    code, out, err = cli("play", "--run", finished_run)
    assert (code, out) == (2, "")
    assert f"The playground needs {package}, which is not installed." in err
    assert "pip install -e '.[play]'" in err


def test_a_run_without_a_base_and_a_port_that_is_taken_are_refused(cli, finished_run, tmp_path):
    from lora_mnist.play.server import listening

    code, _, err = cli("play", "--run", tmp_path / "none", "--port", 0)
    assert code == 4
    assert "There is no base" in err
    with listening(0) as taken:
        port = taken.getsockname()[1]
        code, _, err = cli("play", "--run", finished_run, "--port", port)
    assert code == 2
    assert f"`port` (={port}) cannot be used" in err
    assert cli("play", "--run", finished_run, "--port", 70000)[0] == 2


def test_no_other_command_loads_it():
    asked = "import sys; from lora_mnist.cli.main import main; main(['adapters', '--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert "'lora_mnist.cli.commands'" in loaded
    for name in ("starlette", "uvicorn", "lora_mnist.play"):
        assert f"'{name}'" not in loaded
