/** The player of one clip: a button, the time, and the waveform. It reports its position on every frame while it plays. */
import { DRAWN_BYTES, shapeOf } from "./audio.js";
import { h } from "./dom.js";
import { bytes, clock } from "./format.js";
import { Waveform } from "./waveform.js";

export class Player {
  /** @param {{file: Blob|null, url: string|null}} source  a URL is fetched when it is played, and has no waveform */
  constructor({ file, url }) {
    /** @type {((seconds: number) => void)[]} */
    this.listeners = [];
    this.audio = /** @type {HTMLAudioElement} */ (h("audio", { preload: file ? "auto" : "none" }));
    this.wave = new Waveform((seconds) => this.seek(seconds), () => this.toggle());
    this.button = h("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => this.toggle() });
    this.time = h("span", { class: "time" });
    this.size = h("span", { class: "size" }, file ? bytes(file.size) : url);
    this.note = h("p", { class: "note", hidden: true });
    this.wave.canvas.hidden = true;
    this.element = h("div", { class: "player" },
      h("div", { class: "transport" }, this.button, this.wave.canvas), h("div", { class: "under" }, this.time, this.size, this.note), this.audio);
    this.audio.addEventListener("error", () => this.#cannotPlay());
    this.audio.addEventListener("durationchange", () => {
      if (!this.wave.duration && Number.isFinite(this.audio.duration)) this.wave.set({ duration: this.audio.duration });
    });
    if (file) {
      this.audio.src = URL.createObjectURL(file);
      this.#drawWave(file);
    } else if (url?.startsWith("s3:")) {
      this.button.hidden = true;
      this.#showNote("Only the server can read this URL: there is no player and no waveform.");
    } else {
      this.audio.src = url ?? "";
      this.#showNote("No waveform: this page reads no files of other sites. The server downloads the clip.");
    }
    for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.#state());
    this.audio.addEventListener("seeked", () => this.#report());
    this.audio.addEventListener("loadedmetadata", () => this.#report());
  }

  get playable() {
    return this.audio.error === null && this.audio.src !== "";
  }

  /** @param {(seconds: number) => void} listener */
  onTime(listener) {
    this.listeners.push(listener);
  }

  /** @param {number} seconds @param {boolean} [play] */
  seek(seconds, play = false) {
    this.audio.currentTime = seconds;
    this.#report(seconds);
    if (play) this.#play();
  }

  toggle() {
    if (this.audio.paused) this.#play();
    else this.audio.pause();
  }

  /**
   * Show the duration and the segments that a transcript contains.
   * @param {{duration?: number, segments?: {start: number, end: number, text: string}[]}} known
   */
  learn({ duration, segments = [] }) {
    this.wave.set({ segments, duration: this.wave.duration || duration || segments.at(-1)?.end || 0 });
    this.#report();
  }

  close() {
    this.audio.pause();
    URL.revokeObjectURL(this.audio.src);
  }

  /** @param {Blob} file */
  async #drawWave(file) {
    try {
      this.wave.set(await shapeOf(file));
      this.#report();
    } catch {
      // A rail replaces the waveform.
      if (this.playable) this.#showNote(`No waveform: ${file.size > DRAWN_BYTES ? "the file is too large to draw" : "this browser cannot decode the format"}.`);
    }
  }

  #cannotPlay() {
    this.button.hidden = true;
    this.#showNote("This browser cannot play the clip, but the server may support its format.");
  }

  #play() {
    if (!this.playable) return;
    document.querySelectorAll("audio").forEach((other) => other.pause());
    // A browser may refuse to play before the user has interacted with the page; the button then stays the same.
    this.audio.play().catch(() => this.#state());
  }

  #state() {
    const playing = !this.audio.paused;
    this.button.classList.toggle("playing", playing);
    this.button.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.#report();
    if (playing) this.#follow();
  }

  #follow() {
    if (this.audio.paused) return;
    this.#report();
    requestAnimationFrame(() => this.#follow());
  }

  #report(seconds = this.audio.currentTime) {
    this.wave.canvas.hidden = !this.wave.duration;
    this.wave.moveTo(seconds);
    this.time.textContent = this.wave.duration ? `${clock(seconds, true)} / ${clock(this.wave.duration, true)}` : "";
    this.listeners.forEach((listener) => listener(seconds));
  }

  /** @param {string} text */
  #showNote(text) {
    this.note.textContent = text;
    this.note.hidden = false;
  }
}
