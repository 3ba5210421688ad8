/**
 * Transcript → SubRip or WebVTT, by the same rule as the server's (worker/protocol/cues.py): cues of at most two lines of
 * 42 characters and of seven seconds, split between words, at the ends of segments and where the speaker changes, with the
 * spaces of the text. A cue of punctuation alone is left out. A cue names its speaker and its channel if they are known, and
 * each channel has cues of its own.
 */
import { channelsOf, labelOf } from "./voices.js";

/** @typedef {{start: number, end: number, text: string, speaker?: string|null, channel?: number|null}} Segment  seconds */
/** @typedef {{start: number, end: number, word: string, confidence?: number|null, speaker?: string|null, channel?: number|null}} Word  seconds */
/** @typedef {{text: string, duration?: number, words?: Word[], segments?: Segment[]}} Transcript */

const LINE_CHARS = 42;
const CUE_CHARS = 2 * LINE_CHARS;
const CUE_SEC = 7;
const SHORTEST_SEC = 0.5;

/**
 * Return a transcript as SubRip.
 * @param {Transcript} transcript
 * @returns {string}
 */
export function srt(transcript) {
  return cues(transcript).map((cue, i) => {
    const name = labelOf(cue);
    const text = `${name ? `${name}: ` : ""}${cue.text}`.replaceAll("-->", "->");
    return `${i + 1}\n${stamp(cue.start, ",")} --> ${stamp(cue.end, ",")}\n${text}\n`;
  }).join("\n");
}

/**
 * Return a transcript as WebVTT.
 * @param {Transcript} transcript
 * @returns {string}
 */
export function vtt(transcript) {
  const blocks = cues(transcript).map((cue) => {
    const voice = labelOf(cue) ? `<v ${escaped(labelOf(cue))}>` : "";
    return `${stamp(cue.start, ".")} --> ${stamp(cue.end, ".")}\n${voice}${escaped(cue.text)}\n`;
  });
  return ["WEBVTT\n", ...blocks].join("\n");
}

/**
 * Return the cues of a transcript by their start, split into lines.
 * @param {Transcript} transcript
 * @returns {Segment[]}
 */
export function cues(transcript) {
  return channelsOf(transcript).flatMap(cuesOf).sort((a, b) => a.start - b.start);
}

/** Return the cues of one channel. @param {Transcript} transcript @returns {Segment[]} */
function cuesOf({ text, duration = 0, words = [], segments = [] }) {
  if (!text) return [];
  if (!words.length) {
    const whole = segments.length ? segments : [{ text, start: 0, end: duration }];
    return whole.map((span) => ({ ...span, texts: span.text.split(/\s+/).filter(Boolean).map((word) => ` ${word}`) }))
      .filter(isSpoken).map(cue);
  }
  let letters = 0;
  const ends = new Set(segments.map((segment) => (letters += lettersOf(segment.text))));
  letters = 0;
  /** @type {{texts: string[], start: number, end: number, speaker?: string|null, channel?: number|null}[]} */
  const spans = [];
  let open = false;
  const texts = addSpaces(text, words.map(({ word }) => word));
  for (const [i, { word, start, end, speaker, channel }] of words.entries()) {
    const last = spans.at(-1);
    if (open && last && labelOf(last) === labelOf({ speaker, channel }) && length(last.texts.join("").trimStart()) + length(texts[i]) <= CUE_CHARS && end - last.start <= CUE_SEC) {
      last.texts.push(texts[i]);
      last.end = Math.max(last.end, end);
    } else {
      spans.push({ texts: [texts[i]], start, end, speaker, channel });
    }
    letters += lettersOf(word);
    open = !ends.has(letters);
  }
  return spans.filter(isSpoken).map(cue);
}

/**
 * Return the words, each with the space before it that the text has.
 * @param {string} text
 * @param {string[]} words
 * @returns {string[]}
 */
export function addSpaces(text, words) {
  let at = 0;
  return words.map((word) => {
    const place = text.slice(at, at + word.length + CUE_CHARS).indexOf(word);
    at += place < 0 ? 0 : place + word.length;
    return place === 0 ? word : ` ${word}`;
  });
}

/** Return a text as WebVTT has it. @param {string} text */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Return whether a cue has more than punctuation. @param {{texts: string[]}} span */
function isSpoken({ texts }) {
  return !/^[\p{P}\s]*$/u.test(texts.join(""));
}

/** Return the number of characters other than spaces. @param {string} text */
function lettersOf(text) {
  return length(text.replace(/\s+/g, ""));
}

/** Return the number of characters, as Python counts them, instead of UTF-16 units. @param {string} text */
function length(text) {
  return [...text].length;
}

/**
 * Return a cue. A text that is too long for one line is split near the middle, between two words.
 * @param {{texts: string[], start: number, end: number, speaker?: string|null, channel?: number|null}} span
 * @returns {Segment}
 */
function cue({ texts: [first = "", ...rest], start, end: spokenEnd, ...voice }) {
  const texts = [first.trimStart(), ...rest];
  const text = texts.join("");
  const end = Math.round(spokenEnd * 1000) > Math.round(start * 1000) ? spokenEnd : start + SHORTEST_SEC;
  if (length(text) <= LINE_CHARS || !rest.length) return { ...voice, text, start, end };
  const half = Math.floor(length(text) / 2);
  const places = texts.slice(1).map((_, i) => i + 1);
  const far = (/** @type {number} */ i) => Math.abs(length(texts.slice(0, i).join("")) - half);
  const middle = places.reduce((best, i) => (far(i) < far(best) ? i : best));
  return { ...voice, text: `${texts.slice(0, middle).join("")}\n${texts.slice(middle).join("").trimStart()}`, start, end };
}

/** Return a time stamp. @param {number} seconds @param {string} point  the decimal separator */
function stamp(seconds, point) {
  const millis = Math.round(seconds * 1000);
  const two = (/** @type {number} */ n) => String(Math.floor(n)).padStart(2, "0");
  return `${two(millis / 3_600_000)}:${two(millis / 60_000 % 60)}:${two(millis / 1000 % 60)}${point}`
    + String(millis % 1000).padStart(3, "0");
}
