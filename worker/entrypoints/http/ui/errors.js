/** Errors, shown beside what they are about until they are dealt with. */
import { ApiError } from "./api.js";
import { h } from "./dom.js";
import { counted } from "./format.js";

/**
 * A box that says what went wrong, and offers to try again where that may help.
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
      known?.retryAfter ? h("p", {}, `It can be tried again in ${counted(Math.ceil(known.retryAfter), "second")}.`) : null,
      hint ? h("p", {}, hint) : null),
    h("div", { class: "error-foot" }, where ? h("code", {}, where) : null, wait, again,
      dismiss && h("button", { type: "button", class: "quiet", onclick: dismiss }, "Dismiss")));
}

/**
 * Puts an error into a place that holds one at most; null clears it.
 * @param {HTMLElement} place
 * @param {unknown} error
 * @param {{retry?: () => void, hint?: string}} [actions]
 */
export function showError(place, error, actions = {}) {
  place.replaceChildren(...(error === null ? [] : [errorBox(error, { ...actions, dismiss: () => place.replaceChildren() })]));
}

/** @param {unknown} error @returns {boolean} whether the reader stopped it */
export function isStop(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** The seconds run down outside of the alert, which would be read out each time. @param {HTMLButtonElement} button @param {HTMLElement} note @param {number} seconds */
function countDown(button, note, seconds) {
  const until = Date.now() + seconds * 1000;
  const tell = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    note.textContent = left > 0 ? `in ${left} s` : "";
    if (left > 0) setTimeout(tell, 250);
  };
  tell();
}
