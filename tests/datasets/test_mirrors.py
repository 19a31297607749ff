import builtins
import subprocess
import sys

import pytest

from lora_mnist.datasets.mirrors import import_torchvision


def test_torchvision_can_be_imported_beside_any_torch():
    program = (
        "from lora_mnist.datasets.mirrors import import_torchvision, mirrors\n"
        "import_torchvision()\n"
        "import torchvision.datasets, torchvision.transforms\n"
        "print(mirrors() == torchvision.datasets.MNIST.mirrors)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_another_error_of_torchvision_is_not_hidden(monkeypatch):
    honest = builtins.__import__

    def refuse(name, *rest, **named):
        if name == "torchvision":
            raise RuntimeError("another one")
        return honest(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RuntimeError, match="another one"):
        import_torchvision()
