import ast
import pickle

import pytest

from lora_mnist import errors
from lora_mnist.errors import AdapterError, AlteredError, DamagedError, DataError, LoRAError, RunError

from .conftest import is_cause_and_way_out
from .test_architecture import SOURCES

LIBRARY = {name: text for name, text in SOURCES.items() if name.startswith("lora")}


@pytest.mark.parametrize("kind", [DataError, LoRAError, AdapterError, DamagedError])
def test_an_error_survives_the_way_out_of_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("It is gone.", "Fetch it.")))
    assert (type(error), str(error), error.cause) == (kind, "It is gone. Fetch it.", "It is gone.")
    assert (error.way_out, error.exit_code) == ("Fetch it.", kind.exit_code)


def test_what_the_library_raises_has_the_exit_code_of_its_kind():
    assert (LoRAError.exit_code, AdapterError.exit_code, DamagedError.exit_code) == (2, 4, 5)
    assert issubclass(LoRAError, ValueError)
    assert set(AdapterError.__bases__) == {LoRAError, RunError}
    assert set(DamagedError.__bases__) == {AdapterError, AlteredError}


@pytest.mark.parametrize(
    ("cause", "way_out"), [("It is gone", "Fetch it."), ("It is gone.", "fetch it."), ("It is gone.", "FETCH IT.")]
)
def test_an_error_that_is_not_two_sentences_is_noticed(cause, way_out):
    assert is_cause_and_way_out("It is gone.", "Fetch it.")
    assert not is_cause_and_way_out(cause, way_out)


def unfit_for_a_library(source: str) -> list[str]:
    """What is raised that is neither a LoRAError nor DiskError, and sentences that name a command-line option."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = getattr(errors, ast.unparse(node.exc.func), object)
            if not issubclass(kind, LoRAError | errors.DiskError):
                found.append(ast.unparse(node.exc.func))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "--" in node.value:
            found.append(node.value)
    return found


def test_the_library_raises_its_own_errors_and_knows_no_command_line():
    assert {name: found for name, text in LIBRARY.items() if (found := unfit_for_a_library(text))} == {}
    assert unfit_for_a_library("raise UsageError('It is.', 'Use it.')") == ["UsageError"]
    assert unfit_for_a_library("raise TypeError('It is.')") == ["TypeError"]
    assert unfit_for_a_library("raise LoRAError('It is.', 'Use --force.')") == ["Use --force."]
