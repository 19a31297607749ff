import subprocess
import sys


def test_torchvision_can_be_imported_beside_any_torch():
    program = (
        "from lora_mnist.datasets.mirrors import import_torchvision, mirrors\n"
        "import_torchvision()\n"
        "import torchvision.datasets, torchvision.transforms\n"
        "print(mirrors() == torchvision.datasets.MNIST.mirrors)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
