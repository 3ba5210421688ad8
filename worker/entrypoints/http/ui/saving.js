/** The files that results are saved as: those of one transcript, and those of all finished clips in an archive. */
import { h, save } from "./dom.js";
import { srt, vtt } from "./subtitles.js";
import { textOf } from "./voices.js";
import { zip } from "./zip.js";

/** @typedef {import("./subtitles.js").Transcript} Transcript */
/** @typedef {{name: string, task: string, result: any}} Finished  a finished task of a clip; name: without suffix */

/** Each format: its media type, and the text of a transcript. @type {Record<string, [string, (transcript: Transcript) => string]>} */
export const FORMATS = {
  txt: ["text/plain", (transcript) => `${textOf(transcript)}\n`],
  srt: ["application/x-subrip", srt],
  vtt: ["text/vtt", vtt],
  json: ["application/json", asJson],
};

/**
 * Return the buttons that save all finished clips in one format each.
 * @param {() => Finished[]} finished  return the tasks that are finished when a button is clicked
 * @returns {HTMLElement[]}
 */
export function saveAllButtons(finished) {
  return Object.keys(FORMATS).map((format) => h("button", { type: "button", class: "quiet", "aria-label": `Save all as ${format}`,
    onclick: () => save(`aviary-${format}.zip`, "application/zip", zip(filesOf(finished(), format))) }, format));
}

/**
 * Return the files of a format. A caption has no subtitles, and an embedding is too large for an archive.
 * @param {Finished[]} finished @param {string} format
 * @returns {import("./zip.js").TextFile[]}
 */
function filesOf(finished, format) {
  return finished.flatMap(({ name, task, result: { embedding, ...result } }) => {
    const file = task === "transcribe" ? `${name}.${format}` : `${name}.${task}.${format}`;
    if ("text" in result) return [{ name: file, text: FORMATS[format][1](result) }];
    if (format === "txt" && "caption" in result) return [{ name: file, text: `${result.caption}\n` }];
    return format === "json" ? [{ name: file, text: asJson(result) }] : [];
  });
}

/** @param {object} result */
function asJson(result) {
  return `${JSON.stringify(result, null, 2)}\n`;
}
