"""Exceptions → one message and an exit code."""

import json
from pathlib import Path

import pytest
import torch

from lora_mnist.cli.errors import report_error

from ..conftest import printed_by


def raised(function) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    "refused",
    [
        raised(lambda: torch.empty(10**15)),
        raised(lambda: torch.ones(1).expand(10**15).contiguous()),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB."),
        raised(lambda: bytearray(2**62)),
    ],
    ids=["CPU", "CPU, in an operation", "CUDA", "Python"],
)
def test_memory_that_is_refused_is_no_bug(refused, capsys):
    assert report_error(refused, as_json=True) == 2
    assert "not enough memory" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize("error", [RuntimeError, ValueError, Exception])
def test_another_error_that_speaks_of_allocation_is_a_bug(error, capsys):
    assert report_error(error("cannot allocate a digit to this image"), as_json=False) == 1
    assert "bug" in capsys.readouterr().err


def test_a_home_that_is_not_known_is_no_bug(capsys):
    unknown = raised(lambda: Path("~nobody-of-that-name/x").expanduser())
    assert report_error(unknown, as_json=False) == 2
    assert "Set HOME" in capsys.readouterr().err


def test_an_error_before_torch_is_imported_does_not_import_it():
    code = (
        "import sys; from lora_mnist.cli.errors import report_error\n"
        "print(report_error(MemoryError(), False), report_error(RuntimeError('x'), False), 'torch' in sys.modules)"
    )
    assert printed_by(code) == "2 1 False\n"
