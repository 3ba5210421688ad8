/** The pictures of an embedding: the dimensions that change most over time, and the similarity of any two moments. */
import { keepDrawn } from "./canvas.js";
import { h, save } from "./dom.js";
import { center, floats, mostVariable, shorten, similarity } from "./embedding.js";
import { clock, ticks } from "./format.js";
import { color } from "./theme.js";

/** @typedef {{embedding: string, shape: number[], frame_rate: number, pooling: string, model?: string}} Embedding */
/** @typedef {{values: Float32Array, columns: number, rows: number}} Cells  values: row after row, -1 to 1 */

const LEFT = 44;
const BOTTOM = 22;
const ROWS = 64;
// From low to high: deep green, sand, light. The ramp reads the same in light and dark themes, and without colors.
const RAMP = [[13, 36, 41], [24, 82, 79], [78, 142, 118], [201, 190, 122], [250, 243, 214]];

/**
 * Return the view of an embedding.
 * @param {Embedding} embedding
 * @param {string} name  the name of the file to save, without its suffix
 * @returns {HTMLElement}
 */
export function embeddingView(embedding, name) {
  const values = floats(embedding.embedding);
  const pictures = embedding.shape.length === 1 ? [vector(values)] : overTime(values, embedding);
  const shape = embedding.shape.join(" × ");
  return h("div", { class: "embedding" },
    h("p", {}, embedding.shape.length === 1 ? `One vector of ${shape} numbers for the whole clip.`
      : `${shape} numbers: one vector for each of ${embedding.shape[0]} frames, at ${embedding.frame_rate} frames per second.`),
    ...pictures,
    h("div", { class: "foot" }, h("div", { class: "downloads" }, h("button", { type: "button", class: "quiet", "aria-label": "Save as json",
      onclick: () => save(`${name}.embedding.json`, "application/json", asJson(embedding)) }, "json"))));
}

/** Return the JSON in parts: for half an hour of audio the numbers take 300 MB, too much to copy. @param {Embedding} embedding */
function asJson({ embedding, ...rest }) {
  return new Blob([JSON.stringify(rest).slice(0, -1), ',"embedding":"', embedding, '"}']);
}

/** Return the pictures of an embedding with one vector per frame. @param {Float32Array} values @param {Embedding} embedding */
function overTime(values, { shape: [frames, width], frame_rate: rate }) {
  const seconds = frames / rate;
  const matrix = center({ values, frames, width });
  const wide = shorten(matrix, 480);
  const square = shorten(matrix, 200);
  const variable = mostVariable(wide, ROWS);
  const similar = similarity(square);
  const still = matrix.values.every((value) => value === 0);
  const note = still ? " All moments of this clip are the same, as in a dry run." : "";
  return [
    picture({ values: variable.values, columns: wide.frames, rows: variable.rows }, {
      title: "Over time", seconds, legend: ["low", "high"],
      text: `Each row is one of the ${variable.rows} dimensions that change most, sorted by the time at which they are high.${note}` }),
    picture({ values: similar, columns: square.frames, rows: square.frames }, {
      title: "Similar moments", seconds, square: true, legend: ["different", "similar"],
      text: `Every moment compared with every other, without what all moments share. Light blocks on the diagonal are passages that stay the same; light areas elsewhere are sounds that return.${note}` }),
  ];
}

/** Return the picture of a single vector. @param {Float32Array} values */
function vector(values) {
  const columns = 64;
  const rows = Math.ceil(values.length / columns);
  const cells = new Float32Array(rows * columns).fill(NaN);
  const most = values.reduce((top, value) => Math.max(top, Math.abs(value)), 0) || 1;
  values.forEach((value, i) => { cells[i] = value / most; });
  return picture({ values: cells, columns, rows }, { title: "The vector", legend: [(-most).toPrecision(2), most.toPrecision(2)],
    text: `The ${values.length} numbers in rows of ${columns}, one cell each.` });
}

/**
 * Return a figure of the cells, with a title, a legend and axes.
 * @param {Cells} cells
 * @param {{title: string, text: string, legend: string[], seconds?: number, square?: boolean}} about
 */
function picture(cells, { title, text, legend, seconds, square = false }) {
  const image = paint(cells);
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { class: square ? "square" : "strip", role: "img", "aria-label": `${title}. ${text}` }));
  const left = square ? LEFT : 0;
  keepDrawn(canvas, (context, width, height) => {
    const high = height - (seconds ? BOTTOM : 0);
    context.imageSmoothingEnabled = false;
    if (square) {                   // time increases upward too, so the diagonal rises
      context.save();
      context.scale(1, -1);
      context.drawImage(image, left, -high, width - left, high);
      context.restore();
    } else {
      context.drawImage(image, left, 0, width - left, high);
    }
    if (seconds) axes(context, canvas, { seconds, left, width, high, height, both: square });
  });
  return h("figure", { class: square ? "picture is-square" : "picture" }, h("h4", {}, title), canvas, h("figcaption", {},
    h("span", { class: "legend", "aria-hidden": "true" }, legend[0], scale(), legend[1]), h("span", {}, text)));
}

/**
 * Draw the time axis, or two of them.
 * @param {CanvasRenderingContext2D} context
 * @param {HTMLCanvasElement} canvas
 * @param {{seconds: number, left: number, width: number, high: number, height: number, both: boolean}} place
 */
function axes(context, canvas, { seconds, left, width, high, height, both }) {
  context.fillStyle = color(canvas, "muted");
  context.font = `11px ${getComputedStyle(canvas).fontFamily}`;
  for (const tick of ticks(seconds, Math.max(2, (width - left) / 80))) {
    const at = left + tick / seconds * (width - left);
    const label = clock(tick, seconds < 5);
    const wide = context.measureText(label).width;
    context.fillRect(Math.min(width - 1, at), high, 1, 4);
    context.fillText(label, Math.max(left, Math.min(width - wide, at - wide / 2)), height - 4);
  }
  for (const tick of both ? ticks(seconds, Math.max(2, high / 50)) : []) {
    const label = clock(tick, seconds < 5);
    const at = high - tick / seconds * high;
    context.fillRect(left - 4, Math.max(0, at - 1), 4, 1);
    context.fillText(label, left - 8 - context.measureText(label).width, Math.max(9, Math.min(high, at + 4)));
  }
}

/** Return a canvas with one pixel per cell. A cell that is not a number stays transparent. @param {Cells} cells */
function paint({ values, columns, rows }) {
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { width: columns, height: rows }));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(columns, rows);
  values.forEach((value, i) => {
    if (Number.isFinite(value)) image.data.set([...shade((value + 1) / 2), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Return the color ramp as a strip. */
function scale() {
  const image = paint({ values: Float32Array.from({ length: 48 }, (_, i) => i / 47 * 2 - 1), columns: 48, rows: 1 });
  image.className = "scale";
  return image;
}

/** Return the color of the ramp at a position. @param {number} part  0 to 1 @returns {number[]} red, green, blue */
function shade(part) {
  const at = Math.max(0, Math.min(0.9999, part)) * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(at)], RAMP[Math.floor(at) + 1]];
  return low.map((from, i) => from + (high[i] - from) * (at % 1));
}
