/** The waveform of a clip on a canvas: the position, the segments, and a slider for mouse, touch and keyboard. */
import { keepDrawn } from "./canvas.js";
import { h } from "./dom.js";
import { clock, ticks } from "./format.js";
import { color } from "./theme.js";

const AXIS = 18;
const RAIL = 8;
const BAR = 3;

export class Waveform {
  /** @param {(seconds: number) => void} onSeek  @param {() => void} onToggle  called for the space bar */
  constructor(onSeek, onToggle) {
    this.onSeek = onSeek;
    this.duration = 0;
    this.position = 0;
    /** @type {{start: number, end: number, text: string}[]} */
    this.segments = [];
    /** @type {Float32Array|null} */
    this.peaks = null;
    this.canvas = /** @type {HTMLCanvasElement} */ (h("canvas", {
      class: "waveform", role: "slider", tabindex: 0, "aria-label": "Position in the clip", "aria-valuemin": 0,
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event, onToggle),
      onpointerdown: (/** @type {PointerEvent} */ event) => this.#press(event),
      onpointermove: (/** @type {PointerEvent} */ event) => {
        if (this.canvas.hasPointerCapture(event.pointerId)) this.#point(event);
      },
    }));
    this.redraw = keepDrawn(this.canvas, (context, width, height) => this.#draw(context, width, height));
    this.#describe();
  }

  /** @param {{peaks?: Float32Array, duration?: number, segments?: {start: number, end: number, text: string}[]}} shape */
  set(shape) {
    Object.assign(this, shape);
    this.#describe();
    this.redraw();
  }

  /** @param {number} seconds */
  moveTo(seconds) {
    this.position = seconds;
    this.#describe();
    this.redraw();
  }

  #describe() {
    const here = this.segments.find((segment) => segment.start <= this.position && this.position < segment.end);
    this.canvas.setAttribute("aria-valuemax", this.duration.toFixed(1));
    this.canvas.setAttribute("aria-valuenow", this.position.toFixed(1));
    this.canvas.setAttribute("aria-valuetext", `${clock(this.position)} of ${clock(this.duration)}${here ? `: ${here.text}` : ""}`);
  }

  /** @param {PointerEvent} event */
  #press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.#point(event);
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    this.#seek((event.clientX - box.left) / box.width * this.duration);
  }

  /** @param {KeyboardEvent} event @param {() => void} onToggle */
  #key(event, onToggle) {
    const starts = this.segments.map((segment) => segment.start);
    const step = Math.max(0.25, Math.min(5, this.duration / 40));
    const later = starts.find((start) => start > this.position + 0.01) ?? this.duration;
    const earlier = starts.findLast((start) => start < this.position - 0.3) ?? 0;
    /** @type {Record<string, number>} */
    const places = {
      ArrowRight: this.position + step, ArrowUp: this.position + step, ArrowLeft: this.position - step,
      ArrowDown: this.position - step, PageDown: later, PageUp: earlier, Home: 0, End: this.duration,
    };
    if (event.key === " ") onToggle();
    else if (event.key in places) this.#seek(places[event.key]);
    else return;
    event.preventDefault();
  }

  /** @param {number} seconds */
  #seek(seconds) {
    this.onSeek(Math.max(0, Math.min(this.duration, seconds)));
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width @param {number} height */
  #draw(context, width, height) {
    if (!this.duration) return;
    const x = (/** @type {number} */ seconds) => seconds / this.duration * width;
    const floor = height - AXIS - RAIL;
    this.#drawSegments(context, x, floor);
    const middle = floor / 2;
    const bars = Math.floor(width / BAR);
    const [played, ahead, ink, muted] = ["accent", "wave", "ink", "muted"].map((name) => color(this.canvas, name));
    for (let i = 0; i < bars; i += 1) {
      const high = Math.max(1, this.#peak(i / bars, (i + 1) / bars) * (floor - 6));
      context.fillStyle = i * BAR < x(this.position) ? played : ahead;
      context.fillRect(i * BAR, middle - high / 2, BAR - 1, high);
    }
    context.fillStyle = ink;
    context.fillRect(Math.min(width - 1.5, Math.max(0, x(this.position) - 0.75)), 0, 1.5, floor + RAIL);
    context.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    context.fillStyle = muted;
    for (const tick of ticks(this.duration, Math.max(2, width / 80))) {
      const label = clock(tick, this.duration < 5);
      const wide = context.measureText(label).width;
      context.fillText(label, Math.max(0, Math.min(width - wide, x(tick) - wide / 2)), height - 3);
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {(seconds: number) => number} x @param {number} floor */
  #drawSegments(context, x, floor) {
    const [lit, soft, wave, shade] = ["lit", "lit-soft", "wave", "shade"].map((name) => color(this.canvas, name));
    for (const { start, end } of this.segments) {
      const now = start <= this.position && this.position < end;
      const wide = Math.max(2, x(end) - x(start) - 1);
      context.fillStyle = now ? soft : shade;
      context.fillRect(x(start), 0, wide, floor);
      context.fillStyle = now ? lit : wave;
      context.fillRect(x(start), floor + 2, wide, 3);
    }
  }

  /** Return the peak between two positions, each a part of the clip from 0 to 1. @param {number} from @param {number} to */
  #peak(from, to) {
    if (!this.peaks) return 0;
    let loudest = 0;
    const end = Math.max(Math.floor(from * this.peaks.length) + 1, Math.floor(to * this.peaks.length));
    for (let i = Math.floor(from * this.peaks.length); i < end; i += 1) loudest = Math.max(loudest, this.peaks[i] ?? 0);
    return Math.min(1, loudest);
  }
}
