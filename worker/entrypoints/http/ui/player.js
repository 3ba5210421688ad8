/** Plays one clip: a button, the time, and the wave. Tells where it is on every frame while it plays. */
import { shapeOf } from "./audio.js";
import { h } from "./dom.js";
import { clock } from "./format.js";
import { Waveform } from "./waveform.js";

export class Player {
  /** @param {{file: Blob|null, url: string|null}} source  what lies elsewhere is fetched when it is played, and has no wave */
  constructor({ file, url }) {
    /** @type {((seconds: number) => void)[]} */
    this.listeners = [];
    this.audio = /** @type {HTMLAudioElement} */ (h("audio", { preload: file ? "auto" : "none" }));
    this.wave = new Waveform((seconds) => this.seek(seconds), () => this.toggle());
    this.button = h("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => this.toggle() });
    this.time = h("span", { class: "time" });
    this.note = h("p", { class: "note", hidden: true });
    this.wave.canvas.hidden = true;
    this.element = h("div", { class: "player" },
      h("div", { class: "transport" }, this.button, this.wave.canvas), h("div", { class: "under" }, this.time, this.note), this.audio);
    this.audio.addEventListener("error", () => {
      this.button.hidden = true;
      this.#say("This browser cannot play it; the server may still hear it.");
    });
    this.audio.addEventListener("durationchange", () => {
      if (!this.wave.duration && Number.isFinite(this.audio.duration)) this.wave.set({ duration: this.audio.duration });
    });
    this.audio.src = file ? URL.createObjectURL(file) : url ?? "";
    if (file) this.#drawn(file);
    for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.#state());
    this.audio.addEventListener("seeked", () => this.#tell());
    this.audio.addEventListener("loadedmetadata", () => this.#tell());
  }

  get playable() {
    return this.audio.error === null;
  }

  /** @param {(seconds: number) => void} listener */
  onTime(listener) {
    this.listeners.push(listener);
  }

  /** @param {number} seconds @param {boolean} [play] */
  seek(seconds, play = false) {
    this.audio.currentTime = seconds;
    this.#tell(seconds);
    if (play) this.#play();
  }

  toggle() {
    if (this.audio.paused) this.#play();
    else this.audio.pause();
  }

  /**
   * What a transcript tells about the clip.
   * @param {{duration?: number, segments?: {start: number, end: number, text: string}[]}} known
   */
  learn({ duration, segments = [] }) {
    this.wave.set({ segments, duration: this.wave.duration || duration || segments.at(-1)?.end || 0 });
    this.#tell();
  }

  close() {
    this.audio.pause();
    URL.revokeObjectURL(this.audio.src);
  }

  /** @param {Blob} file */
  async #drawn(file) {
    try {
      this.wave.set(await shapeOf(file));
    } catch {
      return;               // too large, or of a kind that the browser does not know: there is a rail in place of the wave
    }
    this.#tell();
  }

  #play() {
    if (!this.playable) return;
    document.querySelectorAll("audio").forEach((other) => other.pause());
    // A browser may refuse to play before the reader has touched the page; the button stays as it was.
    this.audio.play().catch(() => this.#state());
  }

  #state() {
    const playing = !this.audio.paused;
    this.button.classList.toggle("playing", playing);
    this.button.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.#tell();
    if (playing) this.#follow();
  }

  #follow() {
    if (this.audio.paused) return;
    this.#tell();
    requestAnimationFrame(() => this.#follow());
  }

  #tell(seconds = this.audio.currentTime) {
    this.wave.canvas.hidden = !this.wave.duration;
    this.wave.moveTo(seconds);
    this.time.textContent = this.wave.duration ? `${clock(seconds, true)} / ${clock(this.wave.duration, true)}` : "";
    this.listeners.forEach((listener) => listener(seconds));
  }

  /** @param {string} text */
  #say(text) {
    this.note.textContent = text;
    this.note.hidden = false;
  }
}
