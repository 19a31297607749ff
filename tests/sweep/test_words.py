from lora_mnist.sweep.answer import answer
from lora_mnist.sweep.words import ONE_SEED, sentences
from tests.sweep.test_answer import ROWS


def test_each_digit_has_its_sentence_and_all_have_the_last():
    first, second, last = sentences(answer(ROWS))
    assert first == "Rank 4 is enough for the 3; rank 1 is not: 21.3 more (p = 0.00085)."
    assert "for the 8" in second
    assert "all digits together" in last


def test_one_seed_has_one_sentence():
    assert sentences(answer([row for row in ROWS if row.seed == 0])) == [ONE_SEED]
