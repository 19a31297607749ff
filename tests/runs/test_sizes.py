import pytest

from lora_mnist.errors import UsageError
from lora_mnist.lora import LoRAConfig, inject, parameter_table
from lora_mnist.runs.sizes import lora_size, mlp_layers, parse_ranks, parse_shape, size_table
from lora_mnist.training.model import MLP


def test_the_shares_of_a_square_layer():
    rows = size_table({"w": (4096, 4096)}, False, [4, 8, 16, 32, 64]).ranks
    # the published table cuts 1.5625 and 3.125 %; rounded half to even they are the same
    assert [f"{100 * row.share:.2f}" for row in rows] == ["0.20", "0.39", "0.78", "1.56", "3.12"]


def test_a_wide_layer_at_rank_5():
    table = size_table({"w": (1000, 5000)}, False, [5])
    assert (table.full, table.ranks[0].lora) == (5_000_000, 30_000)


@pytest.mark.parametrize("rank", [1, 8])
def test_our_network_is_counted_as_torch_counts_it(rank):
    model = MLP()
    inject(model, "a", LoRAConfig(rank=rank))
    counted, table = parameter_table(model, "a"), size_table(mlp_layers((1000, 2000)), True, [rank])
    assert (table.full, table.ranks[0].lora) == (counted.base, counted.added)
    assert table.ranks[0].share == counted.share


def test_a_rank_2_update_of_10_by_10_is_40_numbers():
    assert lora_size((10, 10), 2) == 40


def test_what_is_typed():
    assert parse_ranks("1,2,64") == [1, 2, 64]
    assert parse_shape("4096x1024") == (4096, 1024)


@pytest.mark.parametrize("text", ["", "0", "1,", "1;2", "-1", "1.5", "x", "1,0", "99999999999"])
def test_what_is_no_rank_is_refused(text):
    with pytest.raises(UsageError, match="rank"):
        parse_ranks(text)


@pytest.mark.parametrize("text", ["", "10", "10x", "0x3", "3x3x3", "axb", "-1x4", "1.5x2"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="shape"):
        parse_shape(text)
