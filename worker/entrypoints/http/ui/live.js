/**
 * Live captions: the microphone → /v1/realtime → the text on the page.
 *
 *     microphone ── AudioWorklet ── PCM ──▶ WebSocket ── events ──▶ Captions ──▶ #captions
 *
 * Captions are an addition to the recording: whatever happens to them, the recording continues.
 */
import { getKey } from "./api.js";
import { Captions } from "./captions.js";
import { byId, h } from "./dom.js";

const RATE = 24000;                    // Hz: what every realtime server accepts
const WAITS_SEC = [1, 2, 4, 8, 8];     // before each attempt to connect again
const OPEN_SEC = 10;                   // how long a connection may take
const FINISH_SEC = 60;                 // how long the last turn may take
const HELD_BLOCKS = 600;               // of 50 ms, which wait for the connection

/** @typedef {{model?: string, language?: string, prompt?: string}} Options */
/** @typedef {import("./subtitles.js").Transcript} Transcript */

export class Live {
  /** @param {MediaStream} stream @param {Options} options */
  constructor(stream, options) {
    this.options = options;
    this.captions = new Captions();
    /** Whether the captions lack a part of the recording. */
    this.hasGap = false;
    this.sent = 0;
    /** Audio that waits for the connection. @type {Int16Array[]} */
    this.held = [];
    /** @type {WebSocket|null} */
    this.socket = null;
    this.isReady = this.isStopping = this.isOver = false;
    this.attempts = 0;
    /** @type {Promise<Transcript|null>} */
    this.outcome = new Promise((resolve) => { this.resolve = resolve; });
    this.view = new View();
    /** Done once the microphone's audio arrives here, or cannot. */
    this.capturing = this.#capture(stream).then(() => this.#connect()).catch(() =>
      this.#end("This browser cannot show live captions. The recording continues."));
  }

  /**
   * End the audio.
   * @returns {Promise<Transcript|null>} the text, or null if there is none for the whole recording
   */
  stop() {
    this.isStopping = true;
    this.context?.close();
    if (!this.isReady) this.#end(null);
    else {
      this.#send({ type: "input_audio_buffer.commit" });
      this.#send({ type: "input_audio_buffer.clear" });
      setTimeout(() => this.#end("The server did not finish the captions. Transcribe the recording instead."), FINISH_SEC * 1000);
    }
    return this.outcome;
  }

  /** @param {MediaStream} stream */
  async #capture(stream) {
    const context = new AudioContext({ sampleRate: RATE });
    this.context = context;
    await context.audioWorklet.addModule("/ui/capture.js");
    if (this.isStopping) return;
    const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => this.#take(data);
    context.createMediaStreamSource(stream).connect(node);
  }

  /** Send a block, or keep it for the connection that is being made. @param {Int16Array} block */
  #take(block) {
    if (this.isOver || this.isStopping) return;
    if (this.isReady) this.#append(block);
    else if (this.held.push(block) > HELD_BLOCKS) {
      this.held.shift();
      this.hasGap = true;
    }
  }

  #connect() {
    if (this.isOver || this.isStopping) return;
    const url = new URL("/v1/realtime", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = String(new URLSearchParams({ intent: "transcription", ...(this.options.model && { model: this.options.model }) }));
    const key = getKey();
    // Browsers cannot set headers, so the key is a subprotocol, as in OpenAI's client. WebSocket throws for a key that no
    // subprotocol can spell.
    const socket = new WebSocket(url, ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])]);
    this.socket = socket;
    const slow = setTimeout(() => socket.close(), OPEN_SEC * 1000);
    let wasOpen = false;
    socket.onopen = () => {
      clearTimeout(slow);
      wasOpen = true;
      const { language, prompt } = this.options;
      this.#send({ type: "session.update", session: { type: "transcription", audio: { input: {
        format: { type: "audio/pcm", rate: RATE },
        turn_detection: { type: "server_vad" },
        transcription: { ...(language && { language }), ...(prompt && { prompt }) },
      } } } });
    };
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    socket.onclose = () => {
      clearTimeout(slow);
      if (this.isOver) return;
      if (!wasOpen && !this.attempts) this.#end("The server offers no live captions now. Transcribe the recording instead.");
      else this.#reconnect();
    };
  }

  #reconnect() {
    this.isReady = false;
    this.hasGap ||= this.sent > 0;
    const wait = WAITS_SEC[this.attempts];
    if (this.isStopping || wait === undefined) {
      this.#end("The connection for the live captions is lost. Transcribe the recording instead.");
      return;
    }
    this.attempts += 1;
    this.view.note("The connection for the live captions is lost. The recording continues. Connecting again…");
    this.captions.turns.forEach((turn) => { turn.isFinal = true; });   // their session is gone
    this.view.show(this.captions.turns);
    setTimeout(() => this.#connect(), wait * 1000);
  }

  /** @param {any} event */
  #receive(event) {
    if (event.type === "session.updated") {
      this.isReady = true;
      if (this.attempts) this.view.note("Connected again. The captions lack what was said in between.");
      this.attempts = 0;
      this.held.splice(0).forEach((block) => this.#append(block));
    } else if (event.type === "error" && event.error.code !== "input_audio_buffer_commit_empty") {
      this.#end(`No live captions: ${event.error.message}`);
    } else {
      this.captions.apply(event, this.sent);
      this.view.show(this.captions.turns);
      if (this.captions.isDone) this.#end(null);
    }
  }

  /** @param {Int16Array} block */
  #append(block) {
    this.sent += block.length / RATE;
    this.#send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...new Uint8Array(block.buffer))) });
  }

  /** @param {object} event */
  #send(event) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  /** End the captions. @param {string|null} problem  null if they are complete */
  #end(problem) {
    if (this.isOver) return;
    this.isOver = true;
    this.context?.close().catch(() => undefined);              // it may be closed already
    this.socket?.close();
    const { captions } = this;
    const transcript = captions.transcript();
    const isWhole = problem === null && captions.isDone && !this.hasGap && !captions.failed && transcript.text !== "";
    this.view.end(problem ?? (captions.failed ? "The server could not transcribe all of it. Transcribe the recording instead." : null), isWhole);
    this.resolve?.(isWhole ? transcript : null);
  }
}

/** The captions on the page. Screen readers get each new piece of text once. */
class View {
  constructor() {
    /** @type {HTMLElement} */
    this.section = byId("captions");
    /** @type {HTMLElement} */
    this.log = byId("captions-text");
    this.log.replaceChildren();
    this.section.hidden = false;
    this.note("Speak: the captions appear here.");
    /** @type {Map<string, HTMLElement>} */
    this.lines = new Map();
  }

  /** @param {string|null} text */
  note(text) {
    byId("captions-note").textContent = text ?? "";
  }

  /** @param {import("./captions.js").Turn[]} turns */
  show(turns) {
    const follows = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
    for (const { id, text, isFinal } of turns) {
      const line = this.lines.get(id) ?? h("p");
      if (!this.lines.has(id)) this.log.append(line);
      this.lines.set(id, line);
      const shown = line.textContent ?? "";
      if (text.startsWith(shown)) line.append(text.slice(shown.length));
      else line.textContent = text;
      line.classList.toggle("open", !isFinal);
      if (isFinal && !text) line.remove();
    }
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  /** @param {string|null} problem @param {boolean} isWhole  whether the text is shown elsewhere, as a transcript */
  end(problem, isWhole) {
    this.log.querySelectorAll(".open").forEach((line) => line.classList.remove("open"));
    this.note(problem);
    this.section.hidden = isWhole || (problem === null && !this.log.textContent);
  }
}
