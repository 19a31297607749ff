// The network itself: the layers of the base, and the low-rank updates of the adapters that are on.

/** The bytes that a text holds as base64. */
function bytesOf(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

const floatsOf = (text) => new Float32Array(bytesOf(text).buffer);

/** The value of each of the 65,536 numbers of 16 bits: sign, 5 bits of exponent, 10 of fraction. */
function halves() {
  return Float32Array.from({ length: 1 << 16 }, (_, bits) => {
    const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  });
}

/** The weights of a layer as Float32Array (in, out): what one input adds to every output lies side by side. */
function weightsOf(layer, kind) {
  if (kind === "fp32") return floatsOf(layer.weight);
  if (kind === "fp16") {
    const value = halves();
    return Float32Array.from(new Uint16Array(bytesOf(layer.weight).buffer), (bits) => value[bits]);
  }
  const small = new Int8Array(bytesOf(layer.weight).buffer), scale = floatsOf(layer.scale); // one for each output
  const weights = new Float32Array(small.length);
  for (let i = 0; i < small.length; i += layer.out) {
    for (let j = 0; j < layer.out; j++) weights[i + j] = small[i + j] * scale[j];
  }
  return weights;
}

/** Add the product of the weights (in, out) and x (in) to y (out). Zeros are left out: most pixels, half the neurons. */
function addProduct(y, weights, x) {
  const size = y.length;
  for (let i = 0; i < x.length; i++) {
    const value = x[i];
    if (value === 0) continue;
    const row = weights.subarray(i * size, (i + 1) * size);
    for (let j = 0; j < size; j++) y[j] += value * row[j];
  }
}

/** Add an adapter's update of a layer to its output y: factor · B A x. */
function addUpdate(y, { rank, a, b }, x, factor) {
  const low = new Float64Array(rank); // (in) -> (rank)
  for (let r = 0, k = 0; r < rank; r++) for (let i = 0; i < x.length; i++) low[r] += a[k++] * x[i];
  for (let j = 0, k = 0; j < y.length; j++) { // (rank) -> (out)
    let sum = 0;
    for (let r = 0; r < rank; r++) sum += b[k++] * low[r];
    y[j] += factor * sum;
  }
}

class Network {
  /** `layers`: weight, scale and bias as base64, in and out; the weights are of a `kind`: int8, fp16 or fp32.
   * What goes in is (grey / 255 - mean) / std. */
  constructor({ layers, kind, mean, std }) {
    Object.assign(this, { mean, std });
    this.layers = layers.map((one) => ({ weight: weightsOf(one, kind), bias: floatsOf(one.bias) }));
    const [first] = this.layers;
    const black = new Float32Array(layers[0].in).fill(-mean / std); // what no ink adds, which is the same for all images
    this.start = first.bias.slice();
    addProduct(this.start, first.weight, black);
  }

  /** Logits (10) of 784 grey levels, with `adapters` at a strength: by layer `{ rank, scaling, a, b }`, or nothing. */
  logits(pixels, adapters = [], strength = 1) {
    let x = Float32Array.from(pixels, (grey) => (grey / 255 - this.mean) / this.std), y = this.first(pixels).slice();
    for (let i = 0; ; i++) {
      for (const { layers } of adapters) if (layers[i]) addUpdate(y, layers[i], x, strength * layers[i].scaling);
      if (i === this.layers.length - 1) return y;
      x = y.map((value) => Math.max(value, 0)); // ReLU
      y = this.layers[i + 1].bias.slice();
      addProduct(y, this.layers[i + 1].weight, x);
    }
  }

  /** What the base's first layer makes of an image, remembered: the adapted network starts with the same. */
  first(pixels) {
    if (this.seen !== pixels) {
      this.seen = pixels;
      this.made = this.start.slice();
      addProduct(this.made, this.layers[0].weight, Float32Array.from(pixels, (grey) => grey / 255 / this.std));
    }
    return this.made;
  }
}

/** An adapter as the page holds it → the same with its A (rank, in) and B (out, rank) as numbers, by layer. */
function unpacked(adapter) {
  const layers = (adapter.layers ?? []).map((one) => one && { ...one, a: floatsOf(one.a), b: floatsOf(one.b) });
  return { ...adapter, layers };
}

/** The likeliest digit, and the probability of each: softmax. */
function prediction(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, (one) => Math.exp(one - most));
  const sum = powers.reduce((one, other) => one + other);
  return { digit: logits.indexOf(most), probabilities: powers.map((one) => one / sum) };
}
