/** The arithmetic behind the pictures of an embedding. Pure: arrays in, arrays out. A matrix has one row per frame. */

/** @typedef {{values: Float32Array, frames: number, width: number}} Matrix */

/**
 * Decode the values of an embedding.
 * @param {string} text  base64 of float32, little-endian
 * @returns {Float32Array}
 */
export function floats(text) {
  const chars = atob(text);
  const bytes = new Uint8Array(chars.length);
  for (let i = 0; i < chars.length; i += 1) bytes[i] = chars.charCodeAt(i);
  return new Float32Array(bytes.buffer);        // every machine with a browser is little-endian
}

/**
 * Reduce a matrix to at most `most` frames, each the mean of the frames that it replaces.
 * @param {Matrix} matrix
 * @param {number} most
 * @returns {Matrix}
 */
export function shorten({ values, frames, width }, most) {
  if (frames <= most) return { values, frames, width };
  const means = new Float32Array(most * width);
  for (let row = 0; row < most; row += 1) {
    const [from, to] = [Math.floor(row * frames / most), Math.floor((row + 1) * frames / most)];
    for (let i = from; i < to; i += 1) {
      for (let k = 0; k < width; k += 1) means[row * width + k] += values[i * width + k] / (to - from);
    }
  }
  return { values: means, frames: most, width };
}

/**
 * Subtract from each column its mean over time, which leaves the differences between the frames.
 * @param {Matrix} matrix
 * @returns {Matrix}
 */
export function center({ values, frames, width }) {
  const mean = new Float64Array(width);
  for (let i = 0; i < values.length; i += 1) mean[i % width] += values[i] / frames;
  return { values: values.map((value, i) => value - mean[i % width]), frames, width };
}

/**
 * Return the cosine similarity of every two frames, -1 to 1. It is 0 for a frame of zeros.
 * @param {Matrix} matrix
 * @returns {Float32Array} frames × frames
 */
export function similarity({ values, frames, width }) {
  const rows = Array.from({ length: frames }, (_, i) => {
    const row = values.slice(i * width, (i + 1) * width);
    const norm = Math.hypot(...row) || 1;
    return row.map((value) => value / norm);
  });
  const cosines = new Float32Array(frames * frames);
  for (let i = 0; i < frames; i += 1) {
    for (let j = i; j < frames; j += 1) {
      let dot = 0;
      for (let k = 0; k < width; k += 1) dot += rows[i][k] * rows[j][k];
      cosines[i * frames + j] = cosines[j * frames + i] = dot;
    }
  }
  return cosines;
}

/**
 * Return the columns that change most, each scaled by its own deviation, in the order of the times at which they are high.
 * @param {Matrix} matrix  centered
 * @param {number} most  the maximum number of columns
 * @returns {{values: Float32Array, rows: number}} rows × frames, -1 (two deviations below the mean) to 1; each row is a column of the matrix
 */
export function mostVariable({ values, frames, width }, most) {
  const columns = Array.from({ length: width }, (_, k) => {
    let power = 0;
    for (let i = 0; i < frames; i += 1) power += values[i * width + k] ** 2;
    return { k, deviation: Math.sqrt(power / frames) };
  });
  const chosen = columns.sort((a, b) => b.deviation - a.deviation).slice(0, most)
    .map((column) => ({ ...column, center: centerOf(values, frames, width, column.k) }))
    .sort((a, b) => a.center - b.center);
  const scaled = new Float32Array(chosen.length * frames);
  chosen.forEach(({ k, deviation }, row) => {
    for (let i = 0; i < frames; i += 1) {
      scaled[row * frames + i] = Math.max(-1, Math.min(1, values[i * width + k] / (2 * deviation || 1)));
    }
  });
  return { values: scaled, rows: chosen.length };
}

/**
 * Return the frame at which a column is high: the mean frame, weighted by the positive values.
 * @param {Float32Array} values @param {number} frames @param {number} width @param {number} k  the column
 */
function centerOf(values, frames, width, k) {
  let [weight, sum] = [0, 0];
  for (let i = 0; i < frames; i += 1) {
    const high = Math.max(0, values[i * width + k]);
    weight += high;
    sum += high * i;
  }
  return weight ? sum / weight : 0;
}
