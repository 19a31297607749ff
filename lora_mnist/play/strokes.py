"""Strokes of a pen → a grey picture."""

from collections.abc import Sequence

import numpy as np

from lora_mnist.play.protocol import CANVAS

PIXELS = 280  # ten for each of those that the network sees
PEN = 84  # width, in units of the strokes; two to three pixels of a digit that fills the canvas, as in MNIST


def draw(strokes: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """uint8 (280, 280), ink 255 on 0, of strokes of points (right, down) from 0 to 1000. A point alone is a dot."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (PIXELS, PIXELS))
    pen, scale = ImageDraw.Draw(image), PIXELS / CANVAS
    radius = PEN * scale / 2
    for stroke in strokes:
        points = [(x * scale, y * scale) for x, y in stroke]
        pen.line(points, fill=255, width=round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):  # round ends
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image)
