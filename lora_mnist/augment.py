"""Small random shifts, rotations and zooms of training images: fresh data from the images there are.

Which image is moved how is drawn beforehand, on the CPU, like the order of images: every device sees the same.
"""

import math

import torch
from torch.nn import functional as F


def draw_warps(
    steps: int, batch_size: int, shift: float, rotate: float, zoom: float, generator: torch.Generator
) -> torch.Tensor:
    """One warp for every image of every step, each part uniform around none.

    Args:
        shift: up to so many pixels, in either direction.
        rotate: up to so many degrees, either way.
        zoom: factor from 1 − zoom to 1 + zoom.

    Returns:
        float32 (steps, batch_size, 4): radians, factor, pixels to the right, pixels down.
    """
    uniform = torch.rand(steps, batch_size, 4, generator=generator) * 2 - 1
    scale = torch.tensor([math.radians(rotate), zoom, shift, shift])
    return uniform * scale + torch.tensor([0.0, 1.0, 0.0, 0.0])


def warp(images: torch.Tensor, warps: torch.Tensor) -> torch.Tensor:
    """Turn, zoom and shift every image about its middle, interpolating bilinearly; the border goes on outwards.

    Args:
        images: float (B, H, W).
        warps: (B, 4), from `draw_warps`.

    Returns:
        float (B, H, W).
    """
    batch, height, width = images.shape
    angle, zoom, right, down = warps.unbind(1)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # affine_grid maps places in the result to places in the image, in units of half its size: the inverse of the warp
    x, y = -2 * right / width, -2 * down / height
    rows = [torch.stack([cos, sin, cos * x + sin * y], 1), torch.stack([-sin, cos, cos * y - sin * x], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), (batch, 1, height, width), align_corners=False)
    moved = F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[:, 0]  # (B, 1, H, W) -> (B, H, W)
