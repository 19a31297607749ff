from lora_mnist.sweep.plan import plan
from lora_mnist.sweep.sweeping import engine_of, sweep
from tests.conftest import snapshot
from tests.sweep.grids import asked


def test_it_counts_and_leaves_everything_alone(small, tmp_path):
    import shutil

    found = plan(asked(tmp_path / "new"))
    assert (found.jobs, found.finished, found.bases) == (8, 0, 2)
    assert not (tmp_path / "new").exists()
    shutil.copytree(small[0] / "bases", tmp_path / "bases")
    sweep(asked(tmp_path), engine_of("stacked", 1))
    before = snapshot(tmp_path)
    found = plan(asked(tmp_path, ranks="1,2,3"))
    assert (found.jobs, found.finished, found.bases) == (12, 8, 0)
    assert snapshot(tmp_path) == before


def test_the_weakest_digit_of_a_base_is_known_from_its_counts(small, tmp_path):
    import shutil

    shutil.copytree(small[0] / "bases", tmp_path / "bases")
    weakest = asked(tmp_path, digits="weakest")
    assert plan(weakest).finished == 0
    sweep(weakest, engine_of("stacked", 1))
    found = plan(weakest)
    assert (found.jobs, found.finished) == (4, 4)
