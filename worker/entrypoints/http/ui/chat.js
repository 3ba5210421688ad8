/** A conversation about one clip. Each request contains the whole history; the clip is part of the first question. */
import { stream } from "./api.js";
import { inputAudio } from "./audio.js";
import { h, uniqueId } from "./dom.js";
import { errorBox, isStop } from "./errors.js";

/** @typedef {{role: "user"|"assistant", content: string}} Turn */

export class Chat {
  /**
   * @param {{file: File|null, url: string|null}} source
   * @param {() => Record<string, any>} values  return the form's values, when a question is sent
   * @param {(error: unknown) => void} onError
   */
  constructor(source, values, onError) {
    this.source = source;
    this.values = values;
    this.onError = onError;
    /** @type {Turn[]} */
    this.turns = [];
    /** @type {AbortController|null} */
    this.answering = null;
    /** @type {Promise<object>|null} */
    this.audio = null;
    const id = uniqueId("question");
    this.log = h("div", { class: "log", role: "log", "aria-label": "Conversation" });
    this.input = /** @type {HTMLTextAreaElement} */ (h("textarea", { id, rows: 2, placeholder: "What is in this clip?",
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.#ask();
      } }));
    this.send = /** @type {HTMLButtonElement} */ (h("button", { type: "submit", class: "primary" }, "Ask"));
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.close() }, "Stop");
    this.problem = h("div");
    this.element = h("div", { class: "chat" }, this.log, this.problem, h("form", {
      class: "ask",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        this.#ask();
      },
    }, h("label", { for: id }, "Your question"), this.input, h("div", { class: "buttons" }, this.stop, this.send)));
  }

  focus() {
    this.input.focus();
  }

  /** Stop the answer, and keep the text so far. */
  close() {
    this.answering?.abort();
  }

  async #ask() {
    const content = this.input.value.trim();
    if (!content || this.answering) return;
    this.turns.push({ role: "user", content });
    this.#bubble("user", content);
    this.input.value = "";
    await this.#answer();
  }

  async #answer() {
    const bubble = this.#bubble("assistant", "");
    bubble.classList.add("waiting");
    this.answering = new AbortController();
    this.#busy(true);
    this.problem.replaceChildren();
    let text = "";
    try {
      const whole = await stream("/v1/chat/completions", { method: "POST", body: await this.#body(), signal: this.answering.signal }, (event) => {
        text += event.choices?.[0]?.delta?.content ?? "";
        bubble.textContent = text;
      });
      text = whole?.choices?.[0]?.message?.content ?? text;
      bubble.textContent = text;
    } catch (error) {
      if (!isStop(error)) {
        text = "";            // a partial answer is discarded, and the question can be sent again
        this.#fail(error);
      }
    }
    bubble.classList.remove("waiting");
    if (text) this.turns.push({ role: "assistant", content: text });
    else bubble.parentElement?.remove();
    this.answering = null;
    this.#busy(false);
  }

  /** @param {unknown} error */
  #fail(error) {
    this.problem.replaceChildren(errorBox(error, { retry: () => this.#answer() }));
    this.onError(error);
  }

  async #body() {
    const { model, temperature, max_new_tokens: most } = this.values();
    const messages = await Promise.all(this.turns.map(async ({ role, content }, i) =>
      ({ role, content: i ? content : [await this.#part(), { type: "text", text: content }] })));
    return { model, messages, stream: true, ...(temperature !== undefined && { temperature }), ...(most && { max_tokens: most }) };
  }

  /** Return the clip as a part of a message. The encoded file is kept for later requests. */
  async #part() {
    if (!this.source.file) return { type: "audio", audio: { url: this.source.url } };
    this.audio ??= inputAudio(this.source.file);
    return { type: "input_audio", input_audio: await this.audio };
  }

  /** @param {boolean} on */
  #busy(on) {
    this.send.disabled = on;
    this.stop.hidden = !on;
    this.log.setAttribute("aria-busy", String(on));
  }

  /** @param {"user"|"assistant"} who @param {string} text */
  #bubble(who, text) {
    const said = h("p", { class: "said" }, text);
    this.log.append(h("div", { class: `turn ${who}` }, h("span", { class: "who" }, who === "user" ? "You" : "Model"), said));
    said.scrollIntoView({ block: "nearest" });
    return said;
  }
}
