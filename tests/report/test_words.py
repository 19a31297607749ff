import re
from pathlib import Path

import pytest

from lora_mnist.report import words
from lora_mnist.report.document import LayerRow

TEMPLATES = Path(words.__file__).parent / "templates"


def layer(norm: float, rank: int = 2) -> LayerRow:
    return LayerRow(layer="linear1", relative_norm=norm, singular_values=(1.0,) * rank, missed_without=0)


@pytest.mark.parametrize(("share", "said"), [(0.004, "< 1 %"), (0.57, "57 %"), (0.996, "> 99 %"), (1.0, "> 99 %")])
def test_nothing_is_certain(share, said):
    assert words.sure(share).replace(words.NBSP, " ") == said


def test_a_number_keeps_its_unit_and_a_p_its_value():
    tied = words.tied("It makes 57 % fewer (p < 0.0001; p = 0.4), up by 3.")
    assert tied.replace(words.NBSP, "~") == "It makes 57~% fewer (p~<~0.0001; p~=~0.4), up by 3."


@pytest.mark.parametrize(("norm", "meaning"), [(1.58, "outweighs"), (0.4, "a good deal"), (0.02, "small correction")])
def test_a_norm_is_explained_by_the_largest(norm, meaning):
    said = words.how_large([layer(0.001), layer(norm)])
    assert meaning in said
    assert f"{100 * norm:.1f}" in said


def test_every_word_that_a_template_explains_is_in_the_glossary():
    assert words.TITLES.keys() == words.GLOSSARY.keys()
    sources = "".join(file.read_text() for file in TEMPLATES.glob("*.j2"))
    asked = {key or word for word, key in re.findall(r"m\.term\('([^']*)'(?:, '([^']*)')?\)", sources)}
    assert asked
    assert asked <= words.GLOSSARY.keys()
