/** The view of a transcript: each word is highlighted while it plays, and a click on a word plays it. */
import { h, announce, save } from "./dom.js";
import { clock } from "./format.js";
import { FORMATS } from "./saving.js";
import { Speakers } from "./speakers.js";
import { addSpaces } from "./subtitles.js";
import { labelOf, textOf, voicesOf } from "./voices.js";

/** @typedef {import("./subtitles.js").Transcript} Transcript */
/** @typedef {{text: string, start: number, end: number, confidence?: number|null, speaker?: string|null, channel?: number|null}} Spoken */
/** @typedef {{start: number, label: string, spoken: Spoken[]}} Paragraph  label: that of the voice, or "" */

const DOUBTFUL = 0.6; // a confidence below this marks a word
const VERY_DOUBTFUL = 0.3;

/**
 * Return the view of a transcript.
 * @param {Transcript} transcript
 * @param {string} name  the name of the files to save, without their suffix
 * @param {((seconds: number) => void)|null} seek  null if there is nothing to play
 * @returns {{element: HTMLElement, at: (seconds: number) => void}} at: highlights the word at a time
 */
export function transcriptView(transcript, name, seek) {
  const { words = [], segments = [], text } = transcript;
  const paragraphs = paragraphsOf(words.length ? words.map(({ word, ...rest }) => ({ text: word, ...rest })) : segments, segments);
  const spoken = paragraphs.flatMap((paragraph) => paragraph.spoken);
  const speakers = new Speakers(voicesOf(transcript));
  const spans = spoken.map((one, i) => h("span", seek
    ? { class: "word", role: "button", tabindex: i ? -1 : 0, "data-i": i, ...doubt(one) }
    : { class: "word", title: `${clock(one.start, true)} to ${clock(one.end, true)}`, ...doubt(one) }, one.text));
  const body = h("div", { class: "words", role: "group", "aria-label": "Transcript" },
    ...(spoken.length ? paragraphElements(paragraphs, spans, speakers, text, seek) : [h("p", {}, text || "No speech was found.")]));
  const byTime = [...spoken.keys()].sort((a, b) => spoken[a].start - spoken[b].start);     // channels may talk at the same time
  let lit = -1;
  let latest = -1;      // the last word that was lit, of which a pause leaves nothing
  const at = (/** @type {number} */ seconds) => {
    const now = indexAt(spoken, byTime, seconds);
    if (now === lit) return;
    spans[lit]?.classList.remove("now");
    spans[now]?.classList.add("now");
    // The page follows the words only while the reader looks at them.
    if (spans[now] && isInView(spans[latest] ?? spans[now])) spans[now].scrollIntoView({ block: "nearest" });
    lit = now;
    latest = now < 0 ? latest : now;
  };
  const hint = seek && spoken.length ? h("p", { class: "note" }, "Click a word to play it, or use the arrow keys and Enter.") : null;
  if (seek) listen(body, spans, (i) => seek(spoken[i].start));
  return { element: h("div", { class: "transcript" }, h("div", { class: "foot" }, hint, downloads(transcript, name)),
    speakers.element, body), at };
}

/**
 * Return the attributes that mark a doubtful word: an underline and a shade, and the number for everyone.
 * @param {Spoken} spoken
 * @returns {Record<string, string>}
 */
function doubt({ text, confidence }) {
  if (typeof confidence !== "number" || confidence >= DOUBTFUL) return {};
  const share = `${Math.round(confidence * 100)}% sure`;
  return { class: `word doubtful${confidence < VERY_DOUBTFUL ? " very" : ""}`, title: share, "aria-label": `${text}, ${share}` };
}

/**
 * Return a paragraph for each segment, by their start. Each channel fills its own segments.
 * @param {Spoken[]} spoken @param {Spoken[]} segments
 * @returns {Paragraph[]}
 */
function paragraphsOf(spoken, segments) {
  return [...new Set(spoken.map(({ channel }) => channel))].flatMap((channel) => {
    const words = spoken.filter((word) => word.channel === channel);
    const own = segments.filter((segment) => segment.channel === channel);
    const bounds = own.length ? own : turnsOf(words);
    let next = 0;
    return bounds.map((segment, i) => {
      const first = next;
      while (next < words.length && (i === bounds.length - 1 || words[next].start < segment.end - 0.0005)) next += 1;
      return { start: segment.start, label: labelOf(segment), spoken: words.slice(first, next) };
    });
  }).sort((a, b) => a.start - b.start);
}

/** Return the first word of each stretch of one voice, with the end of the stretch. @param {Spoken[]} words @returns {Spoken[]} */
function turnsOf(words) {
  const firsts = words.filter((word, i) => !i || labelOf(words[i - 1]) !== labelOf(word));
  return firsts.map((word, i) => ({ ...word, end: firsts[i + 1]?.start ?? Infinity }));
}

/**
 * Return the elements of the paragraphs, with the time in the margin, and the name where another voice begins.
 * @param {Paragraph[]} paragraphs @param {HTMLElement[]} spans @param {Speakers} speakers @param {string} text
 * @param {((seconds: number) => void)|null} seek
 */
function paragraphElements(paragraphs, spans, speakers, text, seek) {
  const words = paragraphs.flatMap((paragraph) => paragraph.spoken.map((word) => word.text));
  const spaced = addSpaces(text, words).map((word, i) => [word.startsWith(" ") ? " " : "", spans[i]]);
  let next = 0;
  return paragraphs.map(({ start, label, spoken }, i) => {
    const content = spaced.slice(next, next += spoken.length).flat();
    const name = label === paragraphs[i - 1]?.label ? null : speakers.nameOf(label);
    const stamp = clock(start);
    return h("p", { class: `segment ${speakers.colorOf(label)}`.trim() },
      seek ? h("button", { type: "button", class: "stamp", tabindex: -1, "aria-label": `Play from ${stamp}`,
        onclick: () => seek(start) }, stamp) : h("span", { class: "stamp" }, stamp),
      h("span", { class: "said" }, name, name && " ", ...content));
  });
}

/**
 * Connect keyboard and mouse: one word is in the tab order at a time, arrows move, Enter and space play.
 * @param {HTMLElement} body @param {HTMLElement[]} spans @param {(index: number) => void} choose
 */
function listen(body, spans, choose) {
  const indexOf = (/** @type {EventTarget|null} */ target) =>
    Number(/** @type {Element} */ (target).closest("[data-i]")?.getAttribute("data-i") ?? -1);
  let focusable = 0;
  const rove = (/** @type {number} */ to) => {
    spans[focusable]?.setAttribute("tabindex", "-1");
    focusable = to;
    spans[to]?.setAttribute("tabindex", "0");
  };
  body.addEventListener("click", (event) => {
    const i = indexOf(event.target);
    // The end of a text selection is not a click on a word.
    if (i < 0 || String(getSelection())) return;
    rove(i);
    choose(i);
  });
  body.addEventListener("keydown", (event) => {
    const i = indexOf(event.target);
    if (i < 0) return;
    /** @type {Record<string, number>} */
    const moves = { ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: beyond(spans, i, 1), ArrowUp: beyond(spans, i, -1),
      Home: 0, End: spans.length - 1 };
    if (event.key === "Enter" || event.key === " ") choose(i);
    else if (event.key in moves) {
      rove(Math.max(0, Math.min(spans.length - 1, moves[event.key])));
      spans[focusable].focus();
    } else return;
    event.preventDefault();
  });
}

/** Return the nearest word of the next or previous paragraph. @param {HTMLElement[]} spans @param {number} i @param {1|-1} way */
function beyond(spans, i, way) {
  let to = i;
  while (spans[to + way] && spans[to].parentElement === spans[i].parentElement) to += way;
  return to;
}

/**
 * Return the last word that has started, or -1 if it ended more than 0.25 s ago.
 * @param {Spoken[]} spoken @param {number[]} byTime  the indices of the words by their start @param {number} seconds
 */
function indexAt(spoken, byTime, seconds) {
  let low = 0;
  let high = spoken.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spoken[byTime[middle]].start <= seconds + 0.001) low = middle + 1;
    else high = middle;
  }
  return low && seconds < spoken[byTime[low - 1]].end + 0.25 ? byTime[low - 1] : -1;
}

/** @param {HTMLElement} word */
function isInView(word) {
  const { top, bottom } = word.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

/** Return the buttons that copy and save the transcript. @param {Transcript} transcript @param {string} name */
function downloads(transcript, name) {
  const copy = h("button", { type: "button", class: "quiet", onclick: async () => {
    const done = await navigator.clipboard.writeText(textOf(transcript)).then(() => "Copied", () => "Not allowed");
    announce(done);
    copy.textContent = done;
  } }, "Copy");
  return h("div", { class: "downloads", role: "group", "aria-label": "Save the transcript" }, navigator.clipboard ? copy : null,
    ...Object.entries(FORMATS).map(([format, [type, make]]) => h("button", { type: "button", class: "quiet", "aria-label": `Save as ${format}`,
      onclick: () => save(`${name}.${format}`, type, make(transcript)) }, format)));
}
