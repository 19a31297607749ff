import pytest

from lora_mnist.runs.likeness import first_difference

DERIVED = {"a": 1, "b": [{"c": 0.5}, {"c": 1.0}], "seed": 3}


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({}, None),
        ({"b": [{"c": 0.5 + 1e-9}, {"c": 1.0}]}, None),  # rounding
        ({"a": 2}, "finetune.json: `a` is 2, but 1 follows from the rest"),
        ({"a": True}, "finetune.json: `a` is True, but 1 follows from the rest"),
        ({"b": [{"c": 0.5}, {"c": 0.0}]}, "finetune.json: `b.1.c` is 0.0, but 1.0 follows from the rest"),
        ({"b": [{"c": 0.5}]}, "finetune.json: `b.1` is not there, but {'c': 1.0} follows from the rest"),
        ({"more": 1}, "finetune.json: `more` is 1, but not there follows from the rest"),
        ({"b": None}, "finetune.json: `b` is None, but [{'c': 0.5}, {'c': 1.0}] follows from the rest"),
        ({"seed": 4}, None),  # told
    ],
)
def test_the_first_field_that_differs_is_named(change, clause):
    assert first_difference("finetune.json", {**DERIVED, **change}, DERIVED) == clause


def test_what_is_told_of_one_document_is_not_of_another():
    assert first_difference("analysis.json", {**DERIVED, "seed": 4}, DERIVED) is not None
