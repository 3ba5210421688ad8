/** The arithmetic behind an embedding's picture. Pure: arrays in, arrays out. A matrix is row after row, a row a frame. */

/** @typedef {{values: Float32Array, frames: number, width: number}} Matrix */

/**
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
 * At most `most` frames, each the mean of those it stands for.
 * @param {Matrix} matrix
 * @param {number} most
 * @returns {Matrix}
 */
export function shortened({ values, frames, width }, most) {
  if (frames <= most) return { values, frames, width };
  const made = new Float32Array(most * width);
  for (let row = 0; row < most; row += 1) {
    const [from, to] = [Math.floor(row * frames / most), Math.floor((row + 1) * frames / most)];
    for (let i = from; i < to; i += 1) {
      for (let k = 0; k < width; k += 1) made[row * width + k] += values[i * width + k] / (to - from);
    }
  }
  return { values: made, frames: most, width };
}

/**
 * Each column less its mean over time: what the frames differ in.
 * @param {Matrix} matrix
 * @returns {Matrix}
 */
export function centred({ values, frames, width }) {
  const mean = new Float64Array(width);
  for (let i = 0; i < values.length; i += 1) mean[i % width] += values[i] / frames;
  return { values: values.map((value, i) => value - mean[i % width]), frames, width };
}

/**
 * The cosine of every two frames, -1 to 1; 0 where a frame is all zeros.
 * @param {Matrix} matrix
 * @returns {Float32Array} frames × frames
 */
export function similarity({ values, frames, width }) {
  const rows = Array.from({ length: frames }, (_, i) => {
    const row = values.slice(i * width, (i + 1) * width);
    const norm = Math.hypot(...row) || 1;
    return row.map((value) => value / norm);
  });
  const made = new Float32Array(frames * frames);
  for (let i = 0; i < frames; i += 1) {
    for (let j = i; j < frames; j += 1) {
      let dot = 0;
      for (let k = 0; k < width; k += 1) dot += rows[i][k] * rows[j][k];
      made[i * frames + j] = made[j * frames + i] = dot;
    }
  }
  return made;
}

/**
 * The columns that change most, in deviations of their own, ordered by when they are high.
 * @param {Matrix} matrix  centred
 * @param {number} most  columns at most
 * @returns {{values: Float32Array, rows: number}} rows × frames, -1 (two deviations below) to 1; a row is a column of the matrix
 */
export function liveliest({ values, frames, width }, most) {
  const columns = Array.from({ length: width }, (_, k) => {
    let power = 0;
    for (let i = 0; i < frames; i += 1) power += values[i * width + k] ** 2;
    return { k, deviation: Math.sqrt(power / frames) };
  });
  const chosen = columns.sort((a, b) => b.deviation - a.deviation).slice(0, most)
    .map((column) => ({ ...column, centre: centreOf(values, frames, width, column.k) }))
    .sort((a, b) => a.centre - b.centre);
  const made = new Float32Array(chosen.length * frames);
  chosen.forEach(({ k, deviation }, row) => {
    for (let i = 0; i < frames; i += 1) {
      made[row * frames + i] = Math.max(-1, Math.min(1, values[i * width + k] / (2 * deviation || 1)));
    }
  });
  return { values: made, rows: chosen.length };
}

/** When a column is high: the mean frame, weighted by what is above zero. @param {Float32Array} values @param {number} frames @param {number} width @param {number} k */
function centreOf(values, frames, width, k) {
  let [weight, sum] = [0, 0];
  for (let i = 0; i < frames; i += 1) {
    const high = Math.max(0, values[i * width + k]);
    weight += high;
    sum += high * i;
  }
  return weight ? sum / weight : 0;
}
