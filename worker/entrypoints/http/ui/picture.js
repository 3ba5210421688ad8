/** An embedding as pictures: the numbers that change most over time, and how alike any two moments are. */
import { keepDrawn } from "./canvas.js";
import { h, save } from "./dom.js";
import { centred, floats, liveliest, shortened, similarity } from "./embedding.js";
import { clock, ticks } from "./format.js";
import { colour } from "./theme.js";

/** @typedef {{embedding: string, shape: number[], frame_rate: number, pooling: string, model?: string}} Embedding */
/** @typedef {{values: Float32Array, columns: number, rows: number}} Cells  row after row, -1 to 1 */

const LEFT = 44;
const BOTTOM = 22;
const ROWS = 64;
// From low to high: deep green, through sand, to light; read the same in light and dark, and without colours.
const RAMP = [[13, 36, 41], [24, 82, 79], [78, 142, 118], [201, 190, 122], [250, 243, 214]];

/**
 * @param {Embedding} embedding
 * @param {string} name  of the file that can be saved, without suffix
 * @returns {HTMLElement}
 */
export function embeddingView(embedding, name) {
  const values = floats(embedding.embedding);
  const pictures = embedding.shape.length === 1 ? [vector(values)] : overTime(values, embedding);
  const shape = embedding.shape.join(" × ");
  return h("div", { class: "embedding" },
    h("p", {}, embedding.shape.length === 1 ? `One vector of ${shape} numbers for the whole clip.`
      : `${shape} numbers: a vector for each of ${embedding.shape[0]} frames, ${embedding.frame_rate} a second.`),
    ...pictures,
    h("div", { class: "foot" }, h("div", { class: "downloads" }, h("button", { type: "button", class: "quiet", "aria-label": "Save as json",
      onclick: () => save(`${name}.embedding.json`, "application/json", asJson(embedding)) }, "json"))));
}

/** As JSON, in parts: of half an hour the numbers alone are 300 MB, too much to be copied. @param {Embedding} embedding */
function asJson({ embedding, ...rest }) {
  return new Blob([JSON.stringify(rest).slice(0, -1), ',"embedding":"', embedding, '"}']);
}

/** @param {Float32Array} values @param {Embedding} embedding */
function overTime(values, { shape: [frames, width], frame_rate: rate }) {
  const seconds = frames / rate;
  const matrix = centred({ values, frames, width });
  const wide = shortened(matrix, 480);
  const square = shortened(matrix, 200);
  const lively = liveliest(wide, ROWS);
  const alike = similarity(square);
  const still = matrix.values.every((value) => value === 0);
  const note = still ? " Here all moments are the same, as in a dry run." : "";
  return [
    picture({ values: lively.values, columns: wide.frames, rows: lively.rows }, {
      title: "Over time", seconds, legend: ["low", "high"],
      text: `Each row is one of the ${lively.rows} numbers that change most, sorted by when it is high.${note}` }),
    picture({ values: alike, columns: square.frames, rows: square.frames }, {
      title: "Moments that are alike", seconds, square: true, legend: ["unlike", "alike"],
      text: `Every moment against every other, what all share left out. Light blocks on the diagonal are stretches that stay the same; light off it, something that comes back.${note}` }),
  ];
}

/** @param {Float32Array} values */
function vector(values) {
  const columns = 64;
  const rows = Math.ceil(values.length / columns);
  const cells = new Float32Array(rows * columns).fill(NaN);
  const most = values.reduce((top, value) => Math.max(top, Math.abs(value)), 0) || 1;
  values.forEach((value, i) => { cells[i] = value / most; });
  return picture({ values: cells, columns, rows }, { title: "The vector", legend: [(-most).toPrecision(2), most.toPrecision(2)],
    text: `Its ${values.length} numbers in lines of ${columns}, one cell each.` });
}

/**
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
    if (square) {                   // time runs upwards too, so that the diagonal rises
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
 * @param {CanvasRenderingContext2D} context
 * @param {HTMLCanvasElement} canvas
 * @param {{seconds: number, left: number, width: number, high: number, height: number, both: boolean}} place
 */
function axes(context, canvas, { seconds, left, width, high, height, both }) {
  context.fillStyle = colour(canvas, "muted");
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

/** The cells, a pixel each; a cell that is not a number is left clear. @param {Cells} cells */
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

/** The ramp as a strip. */
function scale() {
  const image = paint({ values: Float32Array.from({ length: 48 }, (_, i) => i / 47 * 2 - 1), columns: 48, rows: 1 });
  image.className = "scale";
  return image;
}

/** @param {number} part  0 to 1 @returns {number[]} red, green, blue */
function shade(part) {
  const at = Math.max(0, Math.min(0.9999, part)) * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(at)], RAMP[Math.floor(at) + 1]];
  return low.map((from, i) => from + (high[i] - from) * (at % 1));
}
