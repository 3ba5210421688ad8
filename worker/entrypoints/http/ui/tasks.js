/** The request and the response of each task. The module knows routes and fields, and nothing of the page. */
import { call, stream } from "./api.js";

/** @typedef {import("./models.js").Task} Task */
/** @typedef {{file: File|null, url: string|null}} Source  exactly one is not null */
/** @typedef {Record<string, any>} Values  the options that have a value, by name, and the model's id */

/**
 * @typedef {object} Hooks
 * @property {AbortSignal} signal
 * @property {(part: number) => void} onSent  the part of the upload that has been sent, 0 to 1
 * @property {(text: string) => void} onText  the text so far
 * @property {(done: number, total: number) => void} onProgress  the seconds of audio that are transcribed
 */

const ROUTES = { caption: "captions", embed: "embeddings", analyze: "analyze", transcribe: "transcriptions", translate: "translations" };

/**
 * Run a task on a clip. Chat, which sends several requests, is in `chat.js`.
 * @param {Exclude<Task, "chat">} task
 * @param {Source} source
 * @param {Values} values
 * @param {Hooks} hooks
 * @returns {Promise<any>} the JSON of the response
 */
export async function perform(task, source, values, hooks) {
  if (task === "score") return score(source, values, hooks);
  const path = `/v1/audio/${ROUTES[task]}`;
  if (task === "transcribe" || task === "translate") return transcribe(path, source, values, hooks);
  const { timestamps, ...fields } = values;
  const embeds = task === "embed" || task === "analyze";
  return call(path, { method: "POST", body: bodyOf(source, { ...fields, ...(embeds && { encoding_format: "base64" }) }), ...hooks });
}

/**
 * Add a transcription to the server's job queue.
 * @param {Source} source
 * @param {Values} values
 * @returns {Promise<{job_id: string}>}
 */
export async function enqueue(source, { model, language }) {
  return call("/transcribe/async", { method: "POST", body: form({ file: source.file, model, language }) });
}

/** Transcribe or translate as a stream. @param {string} path @param {Source} source @param {Values} values @param {Hooks} hooks */
async function transcribe(path, source, { timestamps, ...fields }, { signal, onSent, onText, onProgress }) {
  const body = bodyOf(source, { ...fields, response_format: "verbose_json", timestamp_granularities: timestamps, stream: true });
  let text = "";
  let answer = null;
  const whole = await stream(path, { method: "POST", body, signal, onSent }, (event) => {
    if (event.type === "transcript.text.delta") onText(text += event.delta);
    else if (event.type === "transcript.text.done") answer = event;
  }, onProgress);
  if (!whole && !answer) throw new Error("The response ended early. Try again.");
  const { type, ...transcript } = whole ?? answer;
  return transcript;
}

/** Score a file against a reference clip. @param {Source} source @param {Values} values @param {Hooks} hooks */
async function score(source, { uid, cid, score_model: model }, hooks) {
  if (!source.file) throw new Error("Scoring requires a file or a recording, not a URL.");
  return call("/score", { method: "POST", body: form({ uid, cid, audio: source.file, model }), ...hooks });
}

/** Return a form with the file, or JSON with the URL. @param {Source} source @param {Values} fields */
function bodyOf(source, fields) {
  return source.file ? form({ file: source.file, ...fields }) : { audio: { url: source.url }, ...fields };
}

/** Return a form. A list becomes one field per item, as OpenAI's clients send it. @param {Values} fields */
function form(fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (Array.isArray(value)) value.forEach((item) => data.append(`${name}[]`, item));
    else if (value !== undefined) data.append(name, value);
  }
  return data;
}
