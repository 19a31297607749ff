import os
import signal
import subprocess
import sys

from lora_mnist.training.processes import without_interrupts

BLOCKED = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"


def test_only_what_is_started_within_never_hears_ctrl_c(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with without_interrupts():
        within = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    after = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    assert (within.stdout, after.stdout) == ("True\n", "False\n")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert os.environ["PYTHONWARNINGS"] == "error"
