/** What can be asked of which model: pure, from what GET /v1/models says. */
import { counted, languageName } from "./format.js";

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {string[]} aliases
 * @property {string[]} tasks
 * @property {string[]} languages  what it hears; empty where only the checkpoint knows
 * @property {string[]} target_languages  what it translates into
 * @property {string[]} timestamps  out of word, segment, char
 * @property {string[]} options  the names of the options that it understands
 * @property {number|null} max_sec  longer clips are neither captioned nor talked about
 * @property {boolean} loaded
 * @property {boolean} default
 */

/** @typedef {"transcribe"|"translate"|"caption"|"embed"|"chat"|"analyze"|"score"} Task */

/** What each is called, what its button says, what comes of it. @type {Record<Task, {label: string, verb: string, result: string, about: string}>} */
export const TASKS = {
  transcribe: { label: "Transcribe", verb: "Transcribe", result: "Transcript", about: "What is said, with the time of every word" },
  translate: { label: "Translate", verb: "Translate", result: "Translation", about: "What is said, in another language" },
  caption: { label: "Caption", verb: "Caption", result: "Caption", about: "A description of what can be heard" },
  chat: { label: "Chat", verb: "Chat about", result: "Chat", about: "Questions about the clip, and answers" },
  embed: { label: "Embed", verb: "Embed", result: "Embedding", about: "The sound as numbers, drawn so that you can see them" },
  analyze: { label: "Analyze", verb: "Analyze", result: "Analysis", about: "A caption and an embedding in one go" },
  score: { label: "Score", verb: "Score", result: "Score", about: "How near a recording comes to a reference clip" },
};

const WRITING = ["max_new_tokens", "temperature"];
/** The options that each task could have; the model decides. @type {Record<Task, string[]>} */
const OPTIONS = {
  transcribe: ["language", "timestamps", "prompt", ...WRITING],
  translate: ["language", "target_language", "timestamps", "prompt", ...WRITING],
  caption: ["style", "prompt", ...WRITING],
  chat: WRITING,
  embed: ["pooling"],
  analyze: ["style", "prompt", "pooling", ...WRITING],
  score: ["uid", "cid", "score_model"],
};

/**
 * The tasks that at least one model can do, and scoring, which has models of its own.
 * @param {Model[]} models
 * @returns {Task[]}
 */
export function tasksOf(models) {
  const known = /** @type {Task[]} */ (Object.keys(TASKS));
  return known.filter((task) => task === "score" || able(models, task).length);
}

/**
 * @param {Model[]} models
 * @param {Task} task
 * @returns {Model[]}
 */
export function able(models, task) {
  return models.filter((model) => model.tasks.includes(task));
}

/**
 * The options that mean something to a model in a task.
 * @param {Model|undefined} model
 * @param {Task} task
 * @returns {string[]}
 */
export function optionsOf(model, task) {
  return OPTIONS[task].filter((name) => task === "score" || (model !== undefined && means(model, name)));
}

/** @param {Model} model @param {string} name */
function means(model, name) {
  switch (name) {
    case "language": return model.languages.length > 1 && model.options.includes(name);
    case "target_language": return model.target_languages.length > 1;
    case "timestamps": return model.timestamps.length > 0;
    case "pooling": return true;
    default: return model.options.includes(name);
  }
}

/**
 * What is good to know of a model before it is asked.
 * @param {Model} model
 * @param {Task} task
 * @returns {string[]}
 */
export function factsOf(model, task) {
  const { id, languages, loaded, max_sec: most } = model;
  const limited = most && (task === "caption" || task === "chat" || task === "analyze");
  return [
    id === nameOf(model) ? "" : id,
    languages.length === 1 ? languageName(languages[0]) : languages.length ? counted(languages.length, "language") : "",
    limited ? `up to ${counted(most / 60, "minute")}` : "",
    loaded ? "" : "loads when first used",
  ].filter(Boolean);
}

/**
 * What people call a model.
 * @param {Model} model
 * @returns {string}
 */
export function nameOf(model) {
  return model.aliases[0] ?? model.id;
}
