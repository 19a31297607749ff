// The 28 × 28 that a network sees: 784 grey levels, row by row, 255 is ink.

const SIDE = 28;

/** Draw them onto a canvas of 28 × 28, light on dark; null is nothing. */
function paint(canvas, pixels) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, SIDE, SIDE);
  if (pixels === null) return;
  const image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i++) image.data.set([pixels[i], pixels[i], pixels[i], 255], 4 * i);
  context.putImageData(image, 0, 0);
}

/** A canvas that shows them. */
function picture(pixels) {
  const canvas = make("canvas", { width: SIDE, height: SIDE });
  paint(canvas, pixels);
  return canvas;
}
