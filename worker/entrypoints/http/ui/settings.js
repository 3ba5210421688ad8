/** The lower half of the form: task, model and options. It shows only the options that the model supports. */
import { byId, h } from "./dom.js";
import { languageName } from "./format.js";
import { PLACES, TASKS, able, factsOf, nameOf, optionsOf, placeOf, tasksOf } from "./models.js";

/** @typedef {import("./models.js").Model} Model */
/** @typedef {import("./models.js").Task} Task */

/** The values of the checkboxes that are checked. @type {Record<string, any>} */
const CHECKED = { confidence: true, diarize: true, channels: "split" };

export class Settings {
  /** @param {() => void} onChange  called when the task, the model or an option has changed */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Model[]} */
    this.models = [];
    /** @type {Task} */
    this.task = "transcribe";
    /** The id of the model that the user chose last. It is selected again for each task that it supports. */
    this.picked = "";
    /** @type {HTMLSelectElement} */
    this.select = byId("model");
    /** @type {HTMLElement[]} */
    this.rows = [...document.querySelectorAll("[data-option]")].map((row) => /** @type {HTMLElement} */ (row));
    this.select.addEventListener("change", () => {
      this.picked = this.select.value;
      this.#choose();
    });
    byId("diarize").addEventListener("input", () => this.#choose());
    byId("panel").addEventListener("input", onChange);
  }

  /** Show the models; a later call updates them. @param {Model[]} models @param {string[]} scoring  the keys of those that score */
  fill(models, scoring) {
    this.models = models;
    const tasks = tasksOf(models, scoring);
    if (!tasks.includes(this.task)) this.task = tasks[0] ?? this.task;
    byId("score_model").replaceChildren(...scoring.map((key) => h("option", { value: key }, key)));
    const focused = byId("tasks").contains(document.activeElement);
    byId("tasks").querySelectorAll("label").forEach((/** @type {Element} */ label) => label.remove());
    const radios = tasks.map((task) => h("label", {},
      h("input", { type: "radio", name: "task", value: task, checked: task === this.task, onchange: () => this.#turn(task) }),
      h("span", {}, TASKS[task].label)));
    byId("tasks").append(...radios);
    if (focused) byId("tasks").querySelector("input:checked")?.focus();
    this.#turn(this.task);
  }

  /** @returns {Model|undefined} */
  get model() {
    return this.models.find((model) => model.id === this.select.value);
  }

  /** Return the visible options that have a value. @returns {Record<string, any>} */
  values() {
    /** @type {Record<string, any>} */
    const values = this.task === "score" ? {} : { model: this.select.value };
    for (const name of optionsOf(this.model, this.task)) {
      if (name === "timestamps") values.timestamps = this.#levels();
      else if (name in CHECKED) Object.assign(values, byId(name).checked && { [name]: CHECKED[name] });
      else if (name === "num_speakers" && !values.diarize) continue;
      else if (name === "keywords") Object.assign(values, this.#keywords());
      else if (byId(name).value.trim()) values[name] = byId(name).value.trim();
    }
    for (const name of ["max_new_tokens", "temperature", "num_speakers"]) if (name in values) values[name] = Number(values[name]);
    return values;
  }

  /**
   * Mark the field that caused an error until the user changes it. Hidden fields are ignored.
   * @param {string|null} param
   * @param {string} message
   */
  blame(param, message) {
    const field = param && document.getElementById(param);
    if (!field || !byId("panel").contains(field) || field.closest("[hidden]")) return;
    const note = h("p", { class: "field-error", id: `${param}-error` }, message);
    document.getElementById(note.id)?.remove();
    field.after(note);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", note.id);
    field.closest("details")?.setAttribute("open", "");
    field.addEventListener("input", () => {
      note.remove();
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-describedby");
    }, { once: true });
  }

  /** Mark and focus the first invalid field. @returns {boolean} whether all fields are valid */
  check() {
    const fields = /** @type {HTMLInputElement[]} */ ([...byId("panel").querySelectorAll("[data-option]:not([hidden]) input")]);
    const wrong = fields.find((field) => !field.checkValidity());
    if (!wrong) return true;
    this.blame(wrong.id, wrong.validationMessage);
    wrong.focus();
    return false;
  }

  #levels() {
    return ["word", "segment"].filter((level) => byId(`timestamps-${level}`).checked && this.model?.timestamps.includes(level));
  }

  /** Return the keywords, one a line or separated by commas, if there are any. */
  #keywords() {
    const keywords = byId("keywords").value.split(/[\n,]/).map((/** @type {string} */ word) => word.trim()).filter(Boolean);
    return keywords.length ? { keywords } : {};
  }

  /** @param {Task} task */
  #turn(task) {
    this.task = task;
    const models = able(this.models, task);
    const keep = models.find(({ id }) => id === this.picked) ?? models.find((model) => model.default)
      ?? models.find((model) => model.loaded) ?? models[0];
    this.select.replaceChildren(...grouped(models));
    if (keep) this.select.value = keep.id;
    byId("task-about").textContent = TASKS[task].about;
    this.select.closest("[data-row]")?.toggleAttribute("hidden", task === "score");
    this.#choose();
  }

  #choose() {
    const one = byId("score_model").options.length < 2;
    const shown = optionsOf(this.model, this.task).filter((name) =>
      (name !== "score_model" || !one) && (name !== "num_speakers" || byId("diarize").checked));
    for (const row of this.rows) {
      row.hidden = !shown.includes(row.dataset.option ?? "");
      row.querySelectorAll("input, select, textarea").forEach((field) => { field.toggleAttribute("disabled", row.hidden); });
    }
    byId("more").hidden = !byId("more").querySelector("[data-option]:not([hidden])");
    if (this.model) this.#describe(this.model);
    this.onChange();
  }

  /** @param {Model} model */
  #describe(model) {
    byId("model-about").textContent = factsOf(model, this.task).join(" · ");
    languageOptions(byId("language"), model.languages, "Detect automatically");
    languageOptions(byId("target_language"), model.target_languages, null);
    for (const level of ["word", "segment"]) {
      document.querySelector(`[data-level=${level}]`)?.toggleAttribute("hidden", !model.timestamps.includes(level));
    }
  }
}

/** Return the options of a list of models, in groups if there are several. @param {Model[]} models @returns {HTMLElement[]} */
function grouped(models) {
  const option = (/** @type {Model} */ model) => h("option", { value: model.id }, nameOf(model));
  const places = PLACES.filter((place) => models.some((model) => placeOf(model) === place));
  if (places.length < 2) return models.map(option);
  return places.map((place) => h("optgroup", { label: place }, ...models.filter((model) => placeOf(model) === place).map(option)));
}

/**
 * Fill a list of languages, and keep the selected one if it is still available.
 * @param {HTMLSelectElement} select @param {string[]} codes
 * @param {string|null} none  the label of an empty choice, or null if a language must be chosen
 */
function languageOptions(select, codes, none) {
  const before = select.value;
  const sorted = [...codes].sort((a, b) => languageName(a).localeCompare(languageName(b)));
  const options = sorted.map((code) => h("option", { value: code }, languageName(code)));
  select.replaceChildren(...(none === null ? [] : [h("option", { value: "" }, none)]), ...options);
  select.value = codes.includes(before) ? before : none === null ? (codes.includes("en") ? "en" : codes[0] ?? "") : "";
}
