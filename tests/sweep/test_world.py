"""On which images jobs are counted."""

from lora_mnist.sweep.opening import open_world
from tests.sweep.grids import asked


def test_what_is_held_out_is_none_of_test_and_none_that_trains(tmp_path):
    plain, _ = open_world(one := asked(tmp_path, "3", "1", "0"), one.jobs())
    held, jobs = open_world(one := asked(tmp_path, "3", "1", "0", hold_out=True), one.jobs())
    assert len(held.dataset.val) + len(held.dataset.test) == len(plain.dataset.val)
    halves = sorted(image.numpy().tobytes() for part in held.dataset.held_out.values() for image in part.images)
    assert halves == sorted(image.numpy().tobytes() for image in plain.dataset.val.images)
    (base,) = held.bases.values()
    assert {split: len(logits) for split, logits in base.logits.items()} == {
        split: len(part) for split, part in held.dataset.held_out.items()
    }
    assert jobs[0].key(base.fingerprint, held.dataset.sha256) != jobs[0].key(base.fingerprint, plain.dataset.sha256)
