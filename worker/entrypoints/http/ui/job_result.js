/** The result of a job: the transcript of an upload, the results of a payload, one for each input, or a route's plain text. */
import { h, save } from "./dom.js";
import { transcriptView } from "./transcript.js";

/**
 * Return the view of a result.
 * @param {any} result
 * @param {string} name  the name of the files to save, without their suffix
 * @returns {HTMLElement}
 */
export function jobResultView(result, name) {
  if (typeof result === "string") return h("p", { class: "caption" }, result);
  if ("text" in result) return transcriptView(result, name, null).element;
  const json = h("button", { type: "button", class: "quiet", "aria-label": "Save as json",
    onclick: () => save(`${name}.json`, "application/json", `${JSON.stringify(result, null, 2)}\n`) }, "json");
  return h("div", {}, ...(result.results ?? []).map((/** @type {any} */ one, /** @type {number} */ i) =>
    h("section", { class: "result", "aria-label": `Result ${i + 1}` }, h("h3", {}, one.id ?? `Result ${i + 1}`), oneView(one, `${name}-${i + 1}`))),
  h("div", { class: "foot" }, h("div", { class: "downloads" }, json)));
}

/** @param {any} one @param {string} name */
function oneView(one, name) {
  if (one.error) return h("p", { class: "field-error" }, one.error.message);
  if (one.caption) return h("p", { class: "caption" }, one.caption);
  if (typeof one.text !== "string") return h("p", { class: "note" }, "Save the result as JSON to read it.");
  const { word = [], segment = [] } = one.timestamps ?? {};
  const segments = segment.map((/** @type {any} */ { segment: text, ...times }) => ({ text, ...times }));
  return transcriptView({ ...one, words: word, segments }, name, null).element;
}
