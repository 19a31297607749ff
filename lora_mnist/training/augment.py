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

    Returns float32 (steps, batch_size, 4): radians, factor, pixels to the right, pixels down.
    """
    uniform = torch.rand(steps, batch_size, 4, generator=generator) * 2 - 1
    scale = torch.tensor([math.radians(rotate), zoom, shift, shift])
    return uniform * scale + torch.tensor([0.0, 1.0, 0.0, 0.0])


def warp(images: torch.Tensor, warps: torch.Tensor) -> torch.Tensor:
    """Images float (B, H, W), turned, zoomed and shifted about their middle by `warps` (B, 4) from `draw_warps`.

    Interpolates bilinearly; the border goes on outwards.
    """
    _, height, width = images.shape
    angle, zoom, right, down = warps[:, :, None, None].unbind(1)  # (B, 1, 1) each
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # From places in the result to places in the image, as grid_sample wants them: x and y from -1 to 1, so the inverse
    # of the warp. By broadcasting, because affine_grid's batched product takes longer than the sampling itself.
    x = _centres(width, images.device) - 2 * right / width  # (B, 1, W)
    y = (_centres(height, images.device) - 2 * down / height).transpose(1, 2)  # (B, H, 1)
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], 3)  # (B, H, W, 2)
    moved = F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[:, 0]  # (B, 1, H, W) -> (B, H, W)


def _centres(pixels: int, device: torch.device) -> torch.Tensor:
    """The middles of so many pixels side by side between -1 and 1."""
    return (2 * torch.arange(pixels, device=device) + 1) / pixels - 1
