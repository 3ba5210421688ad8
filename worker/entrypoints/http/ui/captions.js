/** The events of a realtime session → the turns of the speaker. Pure. */

/** @typedef {{id: string, text: string, start: number, end: number, isFinal: boolean}} Turn  start, end: seconds */

export class Captions {
  constructor() {
    /** @type {Turn[]} */
    this.turns = [];
    this.failed = 0;
    /** Whether the session has confirmed the end of the audio. */
    this.isEnded = false;
  }

  /** Whether no more text follows. */
  get isDone() {
    return this.isEnded && this.turns.every(({ isFinal }) => isFinal);
  }

  /** @param {any} event  of /v1/realtime @param {number} sent  the seconds of audio that were sent so far */
  apply(event, sent) {
    const kind = event.type.replace(/^.*\./, "");
    const turn = this.turns.find(({ id }) => id === event.item_id);
    if (kind === "speech_started") {
      this.turns.push({ id: event.item_id, text: "", start: event.audio_start_ms / 1000, end: Infinity, isFinal: false });
    } else if (kind === "cleared") this.isEnded = true;
    else if (!turn) return;
    else if (kind === "speech_stopped") turn.end = event.audio_end_ms / 1000;
    else if (kind === "committed") turn.end = Math.min(turn.end, sent);
    else if (kind === "delta") turn.text += event.delta;
    else if (kind === "completed") Object.assign(turn, { text: event.transcript, isFinal: true });
    else if (kind === "failed") {
      turn.isFinal = true;
      this.failed += 1;
    }
  }

  /** Return what was said as a transcript with a segment for each turn. @returns {import("./subtitles.js").Transcript} */
  transcript() {
    const spoken = this.turns.filter(({ text }) => text.trim());
    return {
      text: spoken.map(({ text }) => text.trim()).join(" "),
      segments: spoken.map(({ text, start, end }) => ({ start, end, text: text.trim() })),
    };
  }
}
