"""Ctrl-C and SIGTERM end a command with one line and the code of the signal, whatever it is doing."""

import os
import signal
import subprocess
import sys

import pytest

from lora_mnist.cli.errors import LINES, handle_signals

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
AT_AN_IMPORT = """
import os, sys
_, module, number = sys.argv
class At:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, At())
sys.argv = ["lora-mnist", "evaluate", "--run", "none"]
from lora_mnist.__main__ import script
script()
"""
GOES_ON = """
import os, sys, threading, time
from lora_mnist.cli.errors import handle_signals
handle_signals()
threading.Timer(0.1, os.kill, (os.getpid(), int(sys.argv[1]))).start()
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""
HALF_MADE = """
import os, signal, sys
from lora_mnist.cli.errors import handle_signals, report_error
class Half:  # as an event loop, of which the signal leaves too little to close
    def __init__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        self.rest = 1
    def __del__(self):
        del self.rest
async def run(): ...
def serve(*_): ...
handle_signals()
try:
    serve(run(), Half())
except BaseException as error:
    code = report_error(error, True)
os.kill(os.getpid(), int(sys.argv[1]))  # of a user in a hurry
sys.exit(code)
"""
CAUGHT = """
import os, sys
import typer
from lora_mnist.__main__ import script
class Command:
    def main(self, *_, **options):
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
        except BaseException:
            exec(sys.argv[2], {})
typer.main.get_command = lambda app: Command()
script()
"""


def ended(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    plain = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background job inherits it ignored
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, preexec_fn=plain)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("module", ["typer", "pydantic", "torch", "torch._C"])
def test_a_signal_during_an_import_is_one_line(module, number, code):
    assert ended(AT_AN_IMPORT, module, int(number)) == (code, "", f"{LINES[number]}\n")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("program", [GOES_ON, HALF_MADE], ids=["goes on", "half made"])
def test_code_that_catches_the_signal_or_is_half_made_is_one_line_too(program, number, code):
    assert ended(program, int(number)) == (code, "", f"{LINES[number]}\n")


@pytest.mark.parametrize("then", ["pass", "raise ValueError('Invalid bounding box')"])
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_library_that_catches_the_signal_does_not_change_how_it_ends(number, code, then):
    assert ended(CAUGHT, int(number), then) == (code, "", f"{LINES[number]}\n")


def test_a_signal_that_the_caller_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        handle_signals()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
