/** The speakers of a transcript: their colors, and one field each for a name, which everything that is saved has. */
import { h } from "./dom.js";
import { labelOf, rename } from "./voices.js";

/** @typedef {import("./voices.js").Voice} Voice */

const COLORS = 8; // app.css has as many classes

export class Speakers {
  /** @param {Voice[]} voices */
  constructor(voices) {
    this.voices = voices;
    /** @type {Map<string, number>} */
    this.numbers = new Map(voices.map(({ label }, i) => [label, i]));
    /** The elements that show the name of each voice. @type {HTMLElement[][]} */
    this.names = voices.map(() => []);
  }

  /** Return the class of the color of a label, or "" if the label is no voice's. @param {string} label */
  colorOf(label) {
    const number = this.numbers.get(label);
    return number === undefined ? "" : `voice-${number % COLORS}`;
  }

  /** Return an element that always shows the name of a voice; null if the label is no voice's. @param {string} label */
  nameOf(label) {
    const number = this.numbers.get(label);
    if (number === undefined) return null;
    const name = h("b", { class: "speaker" }, label);
    this.names[number].push(name);
    return name;
  }

  /** Return the fields for the names; null if no voice is known. */
  get element() {
    if (!this.voices.length) return null;
    return h("div", { class: "speakers", role: "group", "aria-label": "Speakers" },
      ...this.voices.map((voice, i) => h("span", { class: this.colorOf(voice.label) },
        h("input", { "aria-label": `Name of ${voice.label}`, placeholder: voice.label, autocomplete: "off", spellcheck: "false",
          oninput: (/** @type {Event} */ event) => this.#rename(i, /** @type {HTMLInputElement} */ (event.target).value.trim()) }))),
      h("p", { class: "note" }, "Everything that you save has the names."));
  }

  /** @param {number} i @param {string} name  "" for the name that the server chose */
  #rename(i, name) {
    const voice = this.voices[i];
    rename(voice, name || null);
    for (const element of this.names[i]) element.textContent = labelOf(voice.spans[0]);
  }
}
