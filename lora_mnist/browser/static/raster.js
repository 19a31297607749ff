// Strokes, or a picture from the disk → grey levels.

const RASTER = 280; // pixels a side of a drawing: ten for each that the network sees
const LARGEST_PICTURE = 560; // pixels of its longer side, to which a picture is made smaller

const raster = make("canvas", { width: RASTER, height: RASTER }).getContext("2d", { willReadFrequently: true });

/** Draw strokes onto a canvas, `scale` pixels for each unit of a stroke's coordinates, with round ends. */
function drawStrokes(context, strokes, scale, colour) {
  context.setTransform(scale, 0, 0, scale, 0, 0);
  Object.assign(context, { lineWidth: PEN, lineCap: "round", lineJoin: "round", strokeStyle: colour });
  for (const [[x, y], ...others] of strokes) {
    context.beginPath();
    context.moveTo(x, y);
    if (!others.length) context.lineTo(x + 0.1, y); // a dot: a line without a length draws nothing
    for (const point of others) context.lineTo(...point);
    context.stroke();
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
}

/** `prepare` of strokes. */
function prepareStrokes(strokes) {
  raster.clearRect(0, 0, RASTER, RASTER);
  drawStrokes(raster, strokes, RASTER / SIZE, "#000");
  const { data } = raster.getImageData(0, 0, RASTER, RASTER);
  const grey = new Uint8Array(RASTER * RASTER);
  for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i + 3]; // opacity
  return prepare(grey, RASTER, RASTER);
}

/** `prepare` of the picture in a file. Rejects if it is none that the browser can read. */
async function prepareFile(file) {
  const image = await createImageBitmap(file);
  const factor = Math.min(LARGEST_PICTURE / Math.max(image.width, image.height), 1);
  const [width, height] = [image.width, image.height].map((side) => Math.max(Math.round(factor * side), 1));
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return prepare(greyOf(data), width, height);
}

/** Grey levels of colours; where they are transparent, on a ground that lets what is drawn stand out. */
function greyOf(data) {
  const levels = Float32Array.from({ length: data.length / 4 }, (_, i) => (
    Math.round(0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2])));
  const opaque = levels.filter((_, i) => data[4 * i + 3] > 127);
  const usual = opaque.length ? median(opaque) : 0, contrary = usual > 127 ? 0 : 255;
  const ground = opaque.length > levels.length / 2 ? usual : contrary; // mostly opaque: paper with transparent corners
  return levels.map((grey, i) => ground + (grey - ground) * data[4 * i + 3] / 255);
}
