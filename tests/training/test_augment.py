import math

import pytest
import torch

from lora_mnist.training.augment import draw_warps, warp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(angle=0.0, zoom=1.0, right=0.0, down=0.0):
    return torch.tensor([[angle, zoom, right, down]])


@pytest.fixture
def image():
    """A soft spot, 4 pixels right of and 2 below the middle."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.exp(-((x - 17.5) ** 2 + (y - 15.5) ** 2) / 4)[None]


def middle(image):
    """Centre of mass, in pixels right of and below the middle of the image."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    total = image.sum()
    return float((x * image).sum() / total), float((y * image).sum() / total)


def test_shifts_by_whole_pixels_and_quarter_turns_are_exact(image):
    torch.testing.assert_close(warp(image, moved()), image)
    rolled = torch.roll(image, (-1, 3), (1, 2))
    torch.testing.assert_close(warp(image, moved(right=3.0, down=-1.0)), rolled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(warp(image, moved(angle=math.pi / 2)), torch.rot90(image, -1, (1, 2)))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"angle": math.pi / 2}, (-2, 4)),  # right becomes down, and down left
        ({"angle": math.pi}, (-4, -2)),
        ({"zoom": 0.5}, (2, 1)),
        ({"zoom": 1.5}, (6, 3)),
        ({"zoom": 0.5, "right": 1.0}, (3, 1)),  # turned and zoomed about the middle, then shifted
        ({"angle": math.pi, "down": 2.0}, (-4, 0)),
    ],
)
def test_where_things_go(image, how, expected):
    assert middle(warp(image, moved(**how))) == pytest.approx(expected, abs=0.05)


def test_every_image_is_moved_by_itself(image):
    warps = torch.cat([moved(right=3.0), moved(), moved(angle=1.0)])
    together = warp(image.expand(3, 28, 28), warps)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], warp(image, warps[i : i + 1]))


def test_warps_fill_their_range_around_none():
    warps = draw_warps(50, 40, 2.0, 10.0, 0.1, generator())
    assert warps.shape == (50, 40, 4)
    low = torch.tensor([-math.radians(10), 0.9, -2, -2])
    high = torch.tensor([math.radians(10), 1.1, 2, 2])
    assert bool((warps >= low - 1e-6).all() and (warps <= high + 1e-6).all())
    torch.testing.assert_close(warps.amin((0, 1)), low, rtol=0.02, atol=0.02)
    torch.testing.assert_close(warps.amax((0, 1)), high, rtol=0.02, atol=0.02)
    assert torch.equal(warps, draw_warps(50, 40, 2.0, 10.0, 0.1, generator()))
    assert not torch.equal(warps, draw_warps(50, 40, 2.0, 10.0, 0.1, generator(1)))


def test_a_part_that_is_off_moves_nothing():
    warps = draw_warps(5, 4, 0.0, 0.0, 0.3, generator())
    assert not warps[..., [0, 2, 3]].any()
    assert bool((warps[..., 1] != 1).all())
