// The 28 × 28 that a network sees, sent as hexadecimal digits.

export const SIDE = 28;

/** Draw them onto a canvas of 28 × 28, light on dark; null is nothing. */
export function paint(canvas, pixels) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, SIDE, SIDE);
  if (pixels === null) return;
  const image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i++) {
    image.data.fill(parseInt(pixels.slice(2 * i, 2 * i + 2), 16), 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** A canvas that shows them. */
export function picture(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  paint(canvas, pixels);
  return canvas;
}
