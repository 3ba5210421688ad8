/**
 * A transcript as SubRip or WebVTT, by the server's own rule (worker/render.py): cues of at most two lines of 42 characters
 * and seven seconds, cut between words and at segment ends.
 */

/** @typedef {{start: number, end: number, text: string}} Segment  seconds */
/** @typedef {{start: number, end: number, word: string}} Word  seconds */
/** @typedef {{text: string, duration?: number, words?: Word[], segments?: Segment[]}} Transcript */

const LINE_CHARS = 42;
const CUE_CHARS = 2 * LINE_CHARS;
const CUE_SEC = 7;

/**
 * @param {Transcript} transcript
 * @returns {string}
 */
export function srt(transcript) {
  return cues(transcript).map((cue, i) => {
    const text = wrap(cue.text).replaceAll("-->", "->");
    return `${i + 1}\n${stamp(cue.start, ",")} --> ${stamp(cue.end, ",")}\n${text}\n`;
  }).join("\n");
}

/**
 * @param {Transcript} transcript
 * @returns {string}
 */
export function vtt(transcript) {
  const blocks = cues(transcript).map((cue) => {
    const text = wrap(cue.text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
    return `${stamp(cue.start, ".")} --> ${stamp(cue.end, ".")}\n${text}\n`;
  });
  return ["WEBVTT\n", ...blocks].join("\n");
}

/**
 * @param {Transcript} transcript
 * @returns {Segment[]}
 */
export function cues({ text, duration = 0, words = [], segments = [] }) {
  if (!text) return [];
  if (!words.length) return segments.length ? segments : [{ text, start: 0, end: duration }];
  const ends = new Set(segments.map((segment) => segment.end));
  /** @type {Segment[]} */
  const made = [];
  let open = false;
  for (const { word, start, end } of words) {
    const last = made.at(-1);
    if (open && last && length(last.text) + 1 + length(word) <= CUE_CHARS && end - last.start <= CUE_SEC) {
      last.text += ` ${word}`;
      last.end = Math.max(last.end, end);
    } else {
      made.push({ text: word, start, end });
    }
    open = !ends.has(end);
  }
  return made;
}

/** Characters as people and Python count them, not UTF-16 units. @param {string} text */
function length(text) {
  return [...text].length;
}

/** On two lines, broken near the middle, where one would be too long. @param {string} text */
function wrap(text) {
  const chars = [...text];
  if (chars.length <= LINE_CHARS) return text;
  const half = Math.floor(chars.length / 2);
  const spaces = chars.flatMap((char, i) => (char === " " ? [i] : []));
  if (!spaces.length) return text;
  const middle = spaces.reduce((best, i) => (Math.abs(i - half) < Math.abs(best - half) ? i : best));
  return `${chars.slice(0, middle).join("")}\n${chars.slice(middle + 1).join("")}`;
}

/** @param {number} seconds @param {string} point */
function stamp(seconds, point) {
  const millis = Math.round(seconds * 1000);
  const two = (/** @type {number} */ n) => String(Math.floor(n)).padStart(2, "0");
  return `${two(millis / 3_600_000)}:${two(millis / 60_000 % 60)}:${two(millis / 1000 % 60)}${point}`
    + String(millis % 1000).padStart(3, "0");
}
