/** What each task sends, and what comes back. Knows routes and fields, and nothing of the page. */
import { call, stream } from "./api.js";

/** @typedef {import("./models.js").Task} Task */
/** @typedef {{file: File|null, url: string|null}} Source  exactly one is there */
/** @typedef {Record<string, any>} Values  the options that are set, by name, and the model's id */

/**
 * @typedef {object} Hooks
 * @property {AbortSignal} signal
 * @property {(part: number) => void} onSent  the part of the upload that is out
 * @property {(text: string) => void} onText  the text so far
 * @property {(segments: {start: number, end: number, text: string}[]) => void} onSegments  those so far
 */

const ROUTES = { caption: "captions", embed: "embeddings", analyze: "analyze", transcribe: "transcriptions", translate: "translations" };

/**
 * Does a task on a clip. Chat, which goes back and forth, has `chat.js`.
 * @param {Exclude<Task, "chat">} task
 * @param {Source} source
 * @param {Values} values
 * @param {Hooks} hooks
 * @returns {Promise<any>} the answer's JSON
 */
export async function perform(task, source, values, hooks) {
  if (task === "score") return score(source, values, hooks);
  const path = `/v1/audio/${ROUTES[task]}`;
  if (task === "transcribe" || task === "translate") return hear(path, source, values, hooks);
  const { timestamps, ...fields } = values;
  const embeds = task === "embed" || task === "analyze";
  return call(path, { method: "POST", body: bodyOf(source, { ...fields, ...(embeds && { encoding_format: "base64" }) }), ...hooks });
}

/**
 * Leaves a transcription to the server's queue.
 * @param {Source} source
 * @param {Values} values
 * @returns {Promise<{job_id: string}>}
 */
export async function enqueue(source, { model, language }) {
  return call("/transcribe/async", { method: "POST", body: form({ file: source.file, model, language }) });
}

/** @param {string} path @param {Source} source @param {Values} values @param {Hooks} hooks */
async function hear(path, source, { timestamps, ...fields }, { signal, onSent, onText, onSegments }) {
  const body = bodyOf(source, { ...fields, response_format: "verbose_json", timestamp_granularities: timestamps, stream: true });
  let text = "";
  let answer = null;
  /** @type {{start: number, end: number, text: string}[]} */
  let segments = [];
  const whole = await stream(path, { method: "POST", body, signal, onSent }, (event) => {
    if (event.type === "transcript.text.delta") onText(text += event.delta);
    else if (event.type === "transcript.text.segment") onSegments(segments = [...segments, event]);
    else if (event.type === "transcript.text.done") answer = event;
  });
  if (!whole && !answer) throw new Error("The answer broke off before its end. Try again.");
  const { type, ...transcript } = whole ?? answer;
  return transcript;
}

/** @param {Source} source @param {Values} values @param {Hooks} hooks */
async function score(source, { uid, cid, score_model: model }, hooks) {
  if (!source.file) throw new Error("Scoring takes a file or a recording, not a URL.");
  return call("/score", { method: "POST", body: form({ uid, cid, audio: source.file, model }), ...hooks });
}

/** Multipart with the file, or JSON that names the URL. @param {Source} source @param {Values} fields */
function bodyOf(source, fields) {
  return source.file ? form({ file: source.file, ...fields }) : { audio: { url: source.url }, ...fields };
}

/** Lists have a field for each item, as OpenAI's clients send them. @param {Values} fields */
function form(fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (Array.isArray(value)) value.forEach((one) => data.append(`${name}[]`, one));
    else if (value !== undefined) data.append(name, value);
  }
  return data;
}
