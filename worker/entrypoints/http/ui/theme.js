/** The theme, light or dark: the system's until the user chooses one. */
import { byId } from "./dom.js";

const KEPT = "aviary-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
/** @type {Set<() => void>} */
const watchers = new Set();

/**
 * Register a function that redraws a canvas, to be called when the colors change.
 * @param {() => void} redraw
 */
export function onTheme(redraw) {
  watchers.add(redraw);
}

/**
 * Return a color of the style sheet, for a canvas.
 * @param {Element} element
 * @param {string} name  the name of the custom property, without its dashes
 * @returns {string}
 */
export function color(element, name) {
  return getComputedStyle(element).getPropertyValue(`--${name}`);
}

/** Connect the switch. */
export function startTheme() {
  const button = byId("theme");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    watchers.forEach((redraw) => redraw());
  };
  const kept = localStorage.getItem(KEPT);
  if (kept) document.documentElement.dataset.theme = kept;
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem(KEPT, next);
    show();
  });
  dark.addEventListener("change", show);
  show();
}
