/** One clip: its line in the list, and its pane with the player and one section of results per task. */
import { announce, h } from "./dom.js";
import { Chat } from "./chat.js";
import { UNREADABLE, errorBox, isFinal, isStop } from "./errors.js";
import { clock, languageName } from "./format.js";
import { TASKS } from "./models.js";
import { embeddingView } from "./picture.js";
import { Player } from "./player.js";
import { scoreView } from "./score.js";
import { perform } from "./tasks.js";
import { transcriptView } from "./transcript.js";

/** @typedef {import("./models.js").Task} Task */

export class Clip {
  /**
   * @param {{name: string, file: File|null, url: string|null}} source
   * @param {{select: (clip: Clip) => void, remove: (clip: Clip) => void, failed: (error: unknown) => void}} owner
   */
  constructor(source, owner) {
    this.source = source;
    this.owner = owner;
    /** The result of each finished task, and the request that it answers. @type {Map<Task, {request: string, result: any}>} */
    this.finished = new Map();
    /** The request of each task that the server refused for good. @type {Map<Task, string>} */
    this.refused = new Map();
    this.unreadable = false;
    /** @type {Map<Task, AbortController>} */
    this.running = new Map();
    /** @type {Chat|null} */
    this.chat = null;
    this.player = new Player(source);
    this.state = h("span", { class: "state" }, "Not started");
    this.gist = h("span", { class: "gist" });
    this.button = h("button", { type: "button", class: "choose", onclick: () => owner.select(this) },
      h("span", { class: "name" }, source.name), this.state, this.gist);
    this.results = h("div", { class: "results" });
    this.pane = h("article", { class: "pane", "aria-label": source.name, hidden: true }, h("h2", { class: "unseen" }, source.name),
      this.player.element, this.results);
    this.line = h("li", {}, this.button, h("button", { type: "button", class: "quiet remove", "aria-label": `Remove ${source.name}`,
      onclick: () => owner.remove(this) }, "×"), this.pane);
    /** Highlights the current word of the latest transcript. @type {((seconds: number) => void)|null} */
    this.follow = null;
    this.player.onTime((seconds) => this.follow?.(seconds));
  }

  /** Show or hide the pane. @param {boolean} on */
  choose(on) {
    this.pane.hidden = !on;
    this.button.setAttribute("aria-current", String(on));
    if (!on) this.player.audio.pause();
  }

  /**
   * Whether a task is not running, not finished, and may succeed: the server has not refused the same request.
   * @param {Task} task @param {Record<string, any>} values
   */
  lacks(task, values) {
    return !this.finished.has(task) && this.#mayRun(task, values);
  }

  /** Whether a task may be run again, because the options differ from those of its result. @param {Task} task @param {Record<string, any>} values */
  mayRepeat(task, values) {
    return this.finished.get(task)?.request !== JSON.stringify(values) && this.#mayRun(task, values);
  }

  /** @param {Task} task @param {Record<string, any>} values */
  #mayRun(task, values) {
    return !this.unreadable && !this.running.has(task) && this.refused.get(task) !== JSON.stringify(values);
  }

  /** The name without its suffix. */
  get name() {
    return this.source.name.replace(/\.[^.]*$/, "");
  }

  /**
   * Run a task, and show its result or its error in the task's section.
   * @param {Exclude<Task, "chat">} task
   * @param {Record<string, any>} values
   */
  async run(task, values) {
    this.running.get(task)?.abort();
    const control = new AbortController();
    this.running.set(task, control);
    const began = performance.now();
    const progress = this.#progress(task, control);
    try {
      const result = await perform(task, this.source, values, { signal: control.signal, ...progress });
      this.#show(task, result, values, (performance.now() - began) / 1000);
    } catch (error) {
      if (this.running.get(task) !== control) return;
      if (isStop(error)) this.#stopped(task, values);
      else this.#fail(task, values, error);
    } finally {
      if (this.running.get(task) === control) this.running.delete(task);
    }
  }

  /** Show the transcript of live captions, unless the clip has been transcribed since. @param {any} transcript */
  adopt(transcript) {
    if (!this.finished.has("transcribe") && !this.running.has("transcribe")) this.#show("transcribe", transcript, {}, null);
  }

  /** Show the chat, which stays once it has a question. @param {boolean} on @param {() => Record<string, any>} values  return the form's values */
  offerChat(on, values) {
    if (on && !this.chat) {
      this.chat = new Chat(this.source, values, this.owner.failed);
      this.#section("chat", null, this.chat.element);
    } else if (!on && this.chat && !this.chat.turns.length) {
      this.results.querySelector("[data-task=chat]")?.remove();
      this.chat = null;
    }
  }

  close() {
    this.running.forEach((control) => control.abort());
    this.running.clear();
    this.chat?.close();
    this.player.close();
    this.line.remove();
    this.pane.remove();
  }

  /** Replace the content of a task's section. @param {Task} task @param {string|null} about @param {...(Node|null)} content */
  #section(task, about, ...content) {
    const before = this.results.querySelector(`[data-task=${task}]`);
    const focused = before?.contains(document.activeElement);
    const section = h("section", { class: "result", "data-task": task, "aria-label": TASKS[task].result, tabindex: -1 },
      h("div", { class: "result-head" }, h("h3", {}, TASKS[task].result), about ? h("p", { class: "note" }, about) : null), ...content);
    before?.remove();
    this.results.prepend(section);
    if (focused) section.focus();           // the focused element was removed, so the section gets the focus
  }

  /** @param {Task} task @param {AbortController} control */
  #progress(task, control) {
    const bar = /** @type {HTMLProgressElement} */ (h("progress", { max: 1, "aria-label": "Progress" }));
    const label = h("span", { class: "note" });
    const text = h("p", { class: "live" });
    const show = (/** @type {string} */ message, /** @type {number|null} */ part) => {
      label.textContent = message;
      this.#setState("busy", message);
      if (part === null) bar.removeAttribute("value");
      else bar.value = part;
    };
    this.#section(task, null, h("div", { class: "progress" }, bar, label,
      h("button", { type: "button", class: "quiet", onclick: () => control.abort() }, "Stop")), text);
    show(this.source.file ? "Uploading" : "Fetching", this.source.file ? 0 : null);
    return {
      onSent: (/** @type {number} */ part) =>
        (part < 1 ? show(`Uploading, ${Math.floor(part * 100)}%`, part) : show(TASKS[task].doing, null)),
      onText: (/** @type {string} */ soFar) => { text.textContent = soFar; },
      onProgress: (/** @type {number} */ done, /** @type {number} */ total) =>
        show(`Transcribed ${clock(done)} of ${clock(total)}`, done / total),
    };
  }

  /** @param {Task} task @param {any} result @param {Record<string, any>} values @param {number|null} seconds  null for live captions */
  #show(task, result, values, seconds) {
    const { name } = this;
    const about = [result.model ?? values.model, result.language && languageName(result.language), seconds === null ? "live captions" : `${seconds.toFixed(1)} s`];
    const content = [result.warning ? h("p", { class: "warning" }, result.warning) : null];
    if ("text" in result) {
      const view = transcriptView(result, name, this.player.playable ? (at) => this.player.seek(at, true) : null);
      this.player.learn(result);
      this.follow = view.at;
      content.push(view.element);
    }
    if (result.thinking) content.push(h("details", {}, h("summary", {}, "How the model reasoned"), h("p", {}, result.thinking)));
    if ("caption" in result) content.push(h("p", { class: "caption" }, result.caption));
    if ("embedding" in result) content.push(embeddingView(result, name));
    if ("sim_score" in result) content.push(scoreView(result));
    this.#section(task, about.filter(Boolean).join(" · "), ...content);
    this.finished.set(task, { request: JSON.stringify(values), result });
    this.#setState("done", "Done");
    this.gist.textContent = result.text ?? result.caption ?? (result.shape ? result.shape.join(" × ") : `score ${result.sim_score?.toFixed(2)}`);
    announce(`${this.source.name}: ${TASKS[task].result} done`);
  }

  /** @param {Exclude<Task, "chat">} task @param {Record<string, any>} values @param {unknown} error */
  #fail(task, values, error) {
    const { status, code } = /** @type {any} */ (error);
    if (isFinal(error)) this.refused.set(task, JSON.stringify(values));
    this.unreadable ||= UNREADABLE.includes(code);
    const hint = task === "score" && status === 404 ? "No reference clip has these ids, or the server has no reference clips."
      : this.unreadable ? "This clip is not sent again." : isFinal(error) ? "To send this clip again, change the model or an option." : undefined;
    this.#section(task, values.model ?? null, errorBox(error, { retry: isFinal(error) ? undefined : () => this.run(task, values), hint }));
    this.#setState("failed", "Failed");
    this.gist.textContent = error instanceof Error ? error.message : String(error);
    this.owner.failed(error);
  }

  /** @param {Exclude<Task, "chat">} task @param {Record<string, any>} values */
  #stopped(task, values) {
    this.#section(task, null, h("p", {}, "Stopped. ", h("button", { type: "button", onclick: () => this.run(task, values) }, "Run it again")));
    this.#setState("stopped", "Stopped");
  }

  /** @param {string} kind @param {string} text */
  #setState(kind, text) {
    this.line.dataset.state = kind;
    this.state.textContent = text;
  }
}
