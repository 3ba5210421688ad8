/**
 * Who speaks in a transcript, by the server's rules (worker/protocol/voices.py): the label of a span, the channels, and the
 * text with a line for each turn. And the names that a user gives to the speakers.
 */

/** @typedef {import("./subtitles.js").Transcript} Transcript */
/** @typedef {{speaker?: string|null, channel?: number|null}} Voiced */
/** @typedef {{text: string, start: number, end: number, speaker?: string|null, channel?: number|null}} Spoken */
/**
 * @typedef {object} Voice
 * @property {string} label  that of the server
 * @property {string|null|undefined} speaker  that of the server
 * @property {Voiced[]} spans  the words and segments of the voice
 */

/** The scripts without spaces between words, as in worker/engine/chunking.py. */
const UNSPACED = /[\u0e00-\u0eff\u1000-\u109f\u3000-\u9fff\uff01-\uff60]/;

/** Return what names the voice of a span: "Speaker 1", "Channel 1", both, or "" if neither is known. @param {Voiced} span */
export function labelOf({ speaker, channel }) {
  const name = (speaker ?? "").split(/\s+/).filter(Boolean).join(" ");
  return [typeof channel === "number" ? `Channel ${channel + 1}` : "", name].filter(Boolean).join(", ");
}

/**
 * Return the voices of a transcript, in the order in which they first talk; none if no speaker or channel is known.
 * @param {Transcript} transcript
 * @returns {Voice[]}
 */
export function voicesOf({ words = [], segments = [] }) {
  /** @type {Map<string, Voice>} */
  const found = new Map();
  for (const span of [...segments, ...words]) {
    const label = labelOf(span);
    if (!label) continue;
    if (!found.has(label)) found.set(label, { label, speaker: span.speaker, spans: [] });
    found.get(label)?.spans.push(span);
  }
  return [...found.values()];
}

/**
 * Give a voice the name of a speaker, in the transcript itself, so that all that is saved later has the name.
 * @param {Voice} voice
 * @param {string|null} name  null for the speaker that the server named, if it named one
 */
export function rename(voice, name) {
  for (const span of voice.spans) {
    span.speaker = name ?? voice.speaker;      // JSON has no undefined speaker
  }
}

/**
 * Return a transcript for each channel, in the order of the channels: the transcript itself if its audio was mixed.
 * @param {Transcript} transcript
 * @returns {Transcript[]}
 */
export function channelsOf(transcript) {
  const { words = [], segments = [] } = transcript;
  const numbers = [...new Set([...segments, ...words].map(({ channel }) => channel ?? -1))].sort((a, b) => a - b);
  if (numbers.length < 2) return [transcript];
  return numbers.map((number) => {
    const [own, ownWords] = [segments, words].map((spans) => spans.filter(({ channel }) => (channel ?? -1) === number));
    const texts = own.length ? own.map((span) => /** @type {Spoken} */ (span).text)
      : ownWords.map((span) => /** @type {import("./subtitles.js").Word} */ (span).word);
    return { ...transcript, text: join(texts), segments: /** @type {any} */ (own), words: /** @type {any} */ (ownWords) };
  });
}

/**
 * Return the text of a transcript: with a line for each turn, after its label, if a label is known.
 * @param {Transcript} transcript
 * @returns {string}
 */
export function textOf(transcript) {
  const { text, words = [], segments = [] } = transcript;
  if (!voicesOf(transcript).length) return text;
  /** @type {{label: string, texts: string[]}[]} */
  const turns = [];
  for (const span of segments.length ? segments : words.map(({ word, ...rest }) => ({ text: word, ...rest }))) {
    const label = labelOf(span);
    if (turns.at(-1)?.label === label) turns.at(-1)?.texts.push(span.text);
    else turns.push({ label, texts: [span.text] });
  }
  return turns.map(({ label, texts }) => (label ? `${label}: ` : "") + join(texts)).join("\n");
}

/** Join texts with spaces, except between characters of scripts that have none. @param {string[]} texts */
function join(texts) {
  return texts.map((text) => text.trim()).filter(Boolean).reduce((joined, text) =>
    joined + (joined && !(UNSPACED.test(joined[joined.length - 1]) && UNSPACED.test(text[0])) ? " " : "") + text, "");
}
