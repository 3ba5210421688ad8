/** The weights of the selected model on the server's disk: buttons to download and to remove them, and the progress. */
import { call, stream } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { showError } from "./errors.js";
import { bytes } from "./format.js";
import { nameOf } from "./models.js";

/** @typedef {import("./models.js").Model} Model */

export class Weights {
  /** @param {() => void} onChange  called when the weights of a model were downloaded or removed */
  constructor(onChange) {
    this.onChange = onChange;
    /** What the place shows: it is drawn again only if this changes. */
    this.shown = "";
    /** The progress of the downloads that this page follows, by the id of the model. @type {Map<string, string>} */
    this.running = new Map();
    /** @type {Model|undefined} */
    this.model = undefined;
  }

  /** Show the buttons of a model, or none. @param {Model|undefined} model */
  show(model) {
    this.model = model;
    const running = model && this.running.get(model.id);
    const shown = JSON.stringify([model?.id, model?.on_disk, model?.loaded, model?.size_bytes, model?.download, running]);
    if (shown === this.shown) return;
    if (JSON.parse(this.shown || "[]")[0] !== model?.id) showError(byId("weights-error"), null);
    this.shown = shown;
    byId("weights").replaceChildren(...(model ? this.#parts(model, running) : []));
  }

  /** @param {Model} model @param {string|undefined} running @returns {HTMLElement[]} */
  #parts(model, running) {
    if (running !== undefined) return [h("span", { class: "note", "data-progress": true }, running)];
    if (model.download) return [button("Follow the download", () => this.#pull(model))];
    if (model.on_disk === false) return [button("Download now", () => this.#pull(model))];
    if (model.size_bytes === null || model.loaded) return [];
    const ask = button("Remove from the server", () => ask.replaceWith(
      button(`Remove ${bytes(model.size_bytes ?? 0)} from the server?`, () => this.#remove(model), true)));
    return [ask];
  }

  /** @param {Model} model */
  async #pull(model) {
    this.#report(model, "Downloading");
    await this.#change(model, `Downloaded ${nameOf(model)}`, () => stream(`${path(model)}?stream=true`, { method: "POST" }, (event) => {
      const { bytes_done: done, bytes_total: total } = event;
      if (total) this.#report(model, `Downloading: ${bytes(done)} of ${bytes(total)}`);
    }));
  }

  /** @param {Model} model */
  async #remove(model) {
    this.#report(model, "Removing");
    await this.#change(model, `Removed ${nameOf(model)}`, () => call(path(model), { method: "DELETE" }));
  }

  /** Change the weights, and announce it or show why not. @param {Model} model @param {string} done @param {() => Promise<any>} change */
  async #change(model, done, change) {
    showError(byId("weights-error"), null);
    /** @type {unknown} */
    let failure = null;
    try {
      await change();
      announce(done);
    } catch (error) {
      failure = error;
    }
    this.running.delete(model.id);
    if (failure) {
      this.show(this.model);
      if (this.model?.id === model.id) showError(byId("weights-error"), failure);
    } else {
      this.onChange();
    }
  }

  /** @param {Model} model @param {string} text */
  #report(model, text) {
    this.running.set(model.id, text);
    this.show(this.model);
  }
}

/** @param {Model} model */
function path(model) {
  return `/v1/models/${encodeURIComponent(model.id)}`;
}

/** @param {string} label @param {() => void} onclick @param {boolean} [focused] @returns {HTMLElement} */
function button(label, onclick, focused = false) {
  const made = h("button", { type: "button", class: "quiet", onclick }, label);
  if (focused) queueMicrotask(() => made.focus());
  return made;
}
