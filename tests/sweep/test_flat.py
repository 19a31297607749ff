import torch

from lora_mnist.lora import fingerprint_model
from lora_mnist.sweep.flat import flatten, load, restore, save


def test_a_world_comes_back_byte_by_byte_and_mapped(small, tmp_path):
    _, world, _ = small
    save(world, tmp_path / "world.safetensors")
    found = load(tmp_path / "world.safetensors")
    assert found.bases.keys() == world.bases.keys()
    for key, base in world.bases.items():
        assert fingerprint_model(found.bases[key].network) == fingerprint_model(base.network)
        assert found.bases[key].fingerprint == base.fingerprint
        assert torch.equal(found.bases[key].uncertainty, base.uncertainty)
        assert found.bases[key].logits.keys() == base.logits.keys()
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(found.dataset, name).images, getattr(world.dataset, name).images)
        assert torch.equal(getattr(found.dataset, name).labels, getattr(world.dataset, name).labels)
    with open("/proc/self/maps") as maps:
        assert str(tmp_path / "world.safetensors") in maps.read()


def test_nothing_is_copied_on_the_way(small):
    _, world, _ = small
    found = restore(*flatten(world))
    key = next(iter(world.bases))
    assert found.dataset.train.images.data_ptr() == world.dataset.train.images.data_ptr()
    weights = found.bases[key].network.linear1.weight, world.bases[key].network.linear1.weight
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert not weights[0].requires_grad
