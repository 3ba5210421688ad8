/** A canvas in the resolution of the screen, which is redrawn when its size or the colors change. */
import { onTheme } from "./theme.js";

/**
 * Keep a canvas up to date, and return a function that redraws it.
 * @param {HTMLCanvasElement} canvas  the style sheet sets its size
 * @param {(context: CanvasRenderingContext2D, width: number, height: number) => void} draw  in CSS pixels
 * @returns {() => void}
 */
export function keepDrawn(canvas, draw) {
  const redraw = () => {
    const { width, height } = canvas.getBoundingClientRect();
    if (!width || !height) return;
    const scale = devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    draw(context, width, height);
  };
  new ResizeObserver(redraw).observe(canvas);
  onTheme(redraw);
  return redraw;
}
