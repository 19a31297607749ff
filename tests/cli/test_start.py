import signal
import subprocess
import sys
import threading

import pytest

from lora_mnist.cli import start
from lora_mnist.cli.exits import report_error

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
IN_A_LONG_CALL = """
import os, signal, sys, threading, time
import lora_mnist.cli.start as start
start.listen(); start.watch()
threading.Timer(0.1, os.kill, (os.getpid(), int(sys.argv[1]))).start()
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        time.sleep(60)
    except BaseException:
        pass  # as what goes on regardless
"""

IN_THE_MAKING = """
import os, signal, sys
import lora_mnist.cli.start as start
from lora_mnist.cli.exits import report_error
class Half:  # as an event loop, of which the signal leaves too little to close
    def __init__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        self.rest = 1
    def __del__(self):
        del self.rest
async def run(): ...
def serve(*_): ...
start.listen()
try:
    serve(run(), Half())
except BaseException as error:
    code = report_error(error, False)
os.kill(os.getpid(), int(sys.argv[1]))  # of a user in a hurry
sys.exit(code)
"""

SWALLOWED = """
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
    assert ended(AT_AN_IMPORT, module, int(number)) == (code, "", f"{start.LINES[number]}\n")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_what_does_not_end_by_itself_is_ended(number, code):
    assert ended(IN_A_LONG_CALL, int(number)) == (code, "", f"{start.LINES[number]}\n")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_nothing_else_is_said_of_what_was_half_made_nor_by_a_second_signal(number, code):
    assert ended(IN_THE_MAKING, int(number)) == (code, "", f"{start.LINES[number]}\n")


@pytest.mark.parametrize("then", ["pass", "raise ValueError('Invalid bounding box')"])
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_what_a_library_makes_of_a_signal_does_not_count(number, code, then):
    assert ended(SWALLOWED, int(number), then) == (code, "", f"{start.LINES[number]}\n")


def test_the_line_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(start, "_unsaid", threading.Lock())
    assert [report_error(error, as_json=True) for error in (KeyboardInterrupt(), start.Terminated())] == [130, 143]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{start.LINES[signal.SIGINT]}\n")


def test_a_signal_that_the_caller_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start.listen()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_heavy_comes_before_the_handlers():
    program = (
        "import sys; before = set(sys.modules); import lora_mnist.__main__\n"
        "print({'typer', 'pydantic', 'rich', 'json'} & (set(sys.modules) - before) or 0)"
    )
    assert ended(program) == (0, "0\n", "")
