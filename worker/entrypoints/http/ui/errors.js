/** Errors, each shown next to its cause until the user resolves or dismisses it. */
import { ApiError } from "./api.js";
import { h } from "./dom.js";
import { pluralize } from "./format.js";

/**
 * Return a box with the message of an error, and with a button to try again if there is `retry`.
 * @param {unknown} error
 * @param {{retry?: () => void, dismiss?: () => void, hint?: string}} [actions]
 * @returns {HTMLElement}
 */
export function errorBox(error, { retry, dismiss, hint } = {}) {
  const known = error instanceof ApiError ? error : null;
  const message = error instanceof Error ? error.message : String(error);
  const where = [known?.code, known?.param && `field ${known.param}`].filter(Boolean).join(" · ");
  const again = retry && h("button", { type: "button", onclick: retry }, "Try again");
  const wait = h("span", { class: "note" });
  if (known?.retryAfter && again) countDown(/** @type {HTMLButtonElement} */ (again), wait, known.retryAfter);
  return h("div", { class: "error" },
    h("div", { role: "alert" }, h("p", {}, message),
      known?.retryAfter ? h("p", {}, `You can try again in ${pluralize(Math.ceil(known.retryAfter), "second")}.`) : null,
      hint ? h("p", {}, hint) : null),
    h("div", { class: "error-foot" }, where ? h("code", {}, where) : null, wait, again,
      dismiss && h("button", { type: "button", class: "quiet", onclick: dismiss }, "Dismiss")));
}

/**
 * Show an error in a place that holds at most one; null clears the place.
 * @param {HTMLElement} place
 * @param {unknown} error
 * @param {{retry?: () => void, hint?: string}} [actions]
 */
export function showError(place, error, actions = {}) {
  place.replaceChildren(...(error === null ? [] : [errorBox(error, { ...actions, dismiss: () => place.replaceChildren() })]));
}

/** The codes of errors whose cause is the audio: no option helps. */
export const UNREADABLE = ["decode_failed", "empty_audio", "too_large"];
// The server of a URL may respond otherwise next time.
const MAY_SUCCEED = ["fetch_failed", "source_not_found"];

/**
 * Return whether the same request would fail again.
 * @param {unknown} error
 * @returns {boolean}
 */
export function isFinal(error) {
  return error instanceof ApiError && error.status >= 400 && error.status < 500 && ![401, 408, 409, 429].includes(error.status)
    && !MAY_SUCCEED.includes(error.code ?? "");
}

/** @param {unknown} error @returns {boolean} whether the user stopped the request */
export function isStop(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/**
 * Count down outside of the alert, which a screen reader would read out at each change.
 * @param {HTMLButtonElement} button @param {HTMLElement} note @param {number} seconds
 */
function countDown(button, note, seconds) {
  const until = Date.now() + seconds * 1000;
  const update = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    note.textContent = left > 0 ? `in ${left} s` : "";
    if (left > 0) setTimeout(update, 250);
  };
  update();
}
