/** The tasks and options of each model, from the response of GET /v1/models. Pure. */
import { bytes, languageName, pluralize } from "./format.js";

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {string} root  differs from the id for an alias: the id of the model that it means
 * @property {string[]} aliases
 * @property {string[]} tasks
 * @property {string[]} languages  the spoken languages; empty if only the checkpoint knows them
 * @property {string[]} target_languages  the languages that it translates into
 * @property {string[]} timestamps  out of word, segment, char
 * @property {string[]} options  the names of the options that it supports
 * @property {number|null} max_sec  the longest clip for captions and chats, in seconds
 * @property {boolean} loaded
 * @property {boolean} default
 * @property {boolean} installed  whether the server has the libraries of the model
 * @property {boolean|null} on_disk  null in a dry run
 * @property {number|null} size_bytes  of the weights on the server's disk
 * @property {{bytes_done: number, bytes_total: number}|null} download  its progress, while the server downloads the weights
 * @property {string} license
 */

/** @typedef {"transcribe"|"translate"|"caption"|"embed"|"chat"|"analyze"|"score"} Task */

/**
 * The button, the activity, the result and the description of each task.
 * @type {Record<Task, {label: string, doing: string, result: string, about: string}>}
 */
export const TASKS = {
  transcribe: { label: "Transcribe", doing: "Transcribing", result: "Transcript", about: "The spoken words, with a timestamp for each" },
  translate: { label: "Translate", doing: "Translating", result: "Translation", about: "The spoken words, in another language" },
  caption: { label: "Caption", doing: "Captioning", result: "Caption", about: "A description of the audio" },
  chat: { label: "Chat", doing: "Answering", result: "Chat", about: "Questions and answers about the selected clip" },
  embed: { label: "Embed", doing: "Embedding", result: "Embedding", about: "The sound as numbers, drawn as pictures" },
  analyze: { label: "Analyze", doing: "Analyzing", result: "Analysis", about: "A caption and an embedding from one pass" },
  score: { label: "Score", doing: "Scoring", result: "Score", about: "The similarity of a recording and a reference clip" },
};

const VOICES = ["diarize", "num_speakers", "channels", "keywords"];
const GENERATION = ["max_new_tokens", "temperature"];
/** The options that a task may have; those of a model are a part of them. @type {Record<Task, string[]>} */
const OPTIONS = {
  transcribe: ["language", "timestamps", "confidence", ...VOICES, "prompt", ...GENERATION],
  translate: ["language", "target_language", "timestamps", "confidence", ...VOICES, "prompt", ...GENERATION],
  caption: ["style", "prompt", ...GENERATION],
  chat: GENERATION,
  embed: ["pooling"],
  analyze: ["style", "prompt", "pooling", ...GENERATION],
  score: ["uid", "cid", "score_model"],
};

/**
 * Return the tasks that at least one model supports. Scoring has models of its own.
 * @param {Model[]} models
 * @param {string[]} scoring  the keys of the models that score
 * @returns {Task[]}
 */
export function tasksOf(models, scoring) {
  const known = /** @type {Task[]} */ (Object.keys(TASKS));
  return known.filter((task) => (task === "score" ? scoring : able(models, task)).length);
}

/**
 * Return the models that support a task and whose libraries the server has.
 * @param {Model[]} models
 * @param {Task} task
 * @returns {Model[]}
 */
export function able(models, task) {
  return models.filter((model) => model.installed && model.tasks.includes(task));
}

/**
 * Return the options that a model supports for a task.
 * @param {Model|undefined} model
 * @param {Task} task
 * @returns {string[]}
 */
export function optionsOf(model, task) {
  return OPTIONS[task].filter((name) => task === "score" || (model !== undefined && supports(model, name)));
}

/** @param {Model} model @param {string} name */
function supports(model, name) {
  switch (name) {
    case "language": return model.languages.length > 1 && model.options.includes(name);
    case "target_language": return model.target_languages.length > 1;
    case "timestamps": return model.timestamps.length > 0;
    case "diarize": case "num_speakers": return model.timestamps.length > 0;     // the speakers come from another model
    case "channels": case "pooling": return true;
    default: return model.options.includes(name);
  }
}

/**
 * Return what a user needs to know of a model before using it.
 * @param {Model} model
 * @param {Task} task
 * @returns {string[]}
 */
export function factsOf(model, task) {
  const { id, languages, loaded, on_disk: onDisk, size_bytes: size, download, max_sec: most } = model;
  const limited = most && (task === "caption" || task === "chat" || task === "analyze");
  return [
    id === nameOf(model) ? "" : id,
    languages.length === 1 ? languageName(languages[0]) : languages.length ? pluralize(languages.length, "language") : "",
    limited ? `up to ${pluralize(most / 60, "minute")}` : "",
    loaded ? "loaded" : download ? "being downloaded" : onDisk === false ? "not on the server: its first use downloads it" : "loads at its first use",
    size === null ? "" : bytes(size),
    model.license === "its own" ? "its own license" : model.license,
  ].filter(Boolean);
}

/** The groups of a list of models, from the quickest first request to the slowest. */
export const PLACES = ["Loaded", "On the server, not loaded", "Not loaded", "Not downloaded"];

/**
 * Return the group of a model.
 * @param {Model} model
 * @returns {string}
 */
export function placeOf({ loaded, on_disk: onDisk }) {
  if (loaded) return PLACES[0];
  if (onDisk === null) return PLACES[2];
  return onDisk ? PLACES[1] : PLACES[3];
}

/**
 * Return the short name of a model.
 * @param {Model} model
 * @returns {string}
 */
export function nameOf(model) {
  return model.aliases[0] ?? model.id;
}
