/** Background jobs: a list that polls the server slowly, while the page is visible and a job is unfinished. */
import { ApiError, call } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { UNREADABLE, showError } from "./errors.js";
import { bytes, clock, dateTime } from "./format.js";
import { jobResultView } from "./job_result.js";
import { TASKS } from "./models.js";
import { enqueue } from "./tasks.js";

/**
 * @typedef {object} Job
 * @property {string} job_id
 * @property {string} status  pending, processing, completed, failed, cancelled
 * @property {string} kind  transcribe for uploads, run for payloads
 * @property {string|null} task
 * @property {string|null} model
 * @property {string|null} filename
 * @property {number|null} upload_bytes
 * @property {string} created_at  UTC
 * @property {string|null} started_at
 * @property {string|null} completed_at
 * @property {string|null} error
 * @property {string|null} error_code
 * @property {{done: number, total: number, audio_sec_done: number|null, audio_sec_total: number|null}} progress  inputs, and seconds of audio
 * @property {number|null} position  in the queue
 */

/** @typedef {import("./tasks.js").Source} Source */

const FINISHED = ["completed", "failed", "cancelled"];
const SOON_MS = 1500;
const SLOW_MS = 10_000;
const TYPING_MS = 300;
const PAGE = 50;
const MOST = 500;

export class Jobs {
  constructor() {
    this.list = byId("jobs");
    this.problem = byId("jobs-error");
    this.search = byId("jobs-search");
    this.more = byId("jobs-more");
    /** @type {Map<string, {line: HTMLElement, shown: string}>} */
    this.lines = new Map();
    /** What this tab has submitted, by the job's id: the server removes an upload when its job ends. @type {Map<string, {source: Source, values: object}>} */
    this.submitted = new Map();
    this.limit = PAGE;
    this.timer = 0;
    this.wait = SOON_MS;
    this.unfinished = 0;
    document.addEventListener("visibilitychange", () => this.#later());
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.limit = PAGE;
      this.timer = setTimeout(() => this.refresh(), TYPING_MS);
    });
    this.more.addEventListener("click", () => {
      this.limit = Math.min(MOST, this.limit + PAGE);
      this.refresh();
    });
  }

  /** Keep what a job was made of, so that it can be tried again. @param {{job_id: string}} job @param {Source} source @param {Record<string, any>} values */
  remember({ job_id: id }, source, values) {
    this.submitted.set(id, { source, values });
  }

  /** Request the list now. Show a message if the server does not support jobs. */
  async refresh() {
    clearTimeout(this.timer);
    const search = this.search.value.trim();
    try {
      const before = this.unfinished;
      const { jobs, counts, before: older } = await call(`/jobs?limit=${this.limit}${search && `&search=${encodeURIComponent(search)}`}`);
      if (search !== this.search.value.trim()) return;      // the user has typed on, and another request follows
      this.unfinished = counts.pending + counts.processing;
      this.#show(jobs);
      byId("jobs-none").hidden = jobs.length > 0;
      byId("jobs-none").textContent = search ? "No job matches." : "No jobs yet.";
      this.more.hidden = older === null || this.limit >= MOST;
      showError(this.problem, null);
      this.wait = this.unfinished === before ? Math.min(SLOW_MS, this.wait * 1.3) : SOON_MS;
      this.#later();
    } catch (error) {
      const off = error instanceof ApiError && error.status === 404;
      showError(this.problem, off ? new Error("This server does not support background jobs.") : error, off ? {} : { retry: () => this.refresh() });
    }
  }

  #later() {
    clearTimeout(this.timer);
    if (document.visibilityState === "visible" && this.unfinished) this.timer = setTimeout(() => this.refresh(), this.wait);
  }

  /** Update the list. Lines that have not changed stay, and keep the focus. @param {Job[]} jobs */
  #show(jobs) {
    const badge = byId("jobs-open");
    badge.textContent = String(this.unfinished);
    badge.hidden = !this.unfinished;
    const lines = jobs.map((job) => {
      const shown = JSON.stringify(job);
      const known = this.lines.get(job.job_id);
      if (known?.shown === shown) return known.line;
      const line = this.#line(job);
      if (known?.line.contains(document.activeElement)) queueMicrotask(() => line.querySelector("button")?.focus());
      this.lines.set(job.job_id, { line, shown });
      return line;
    });
    if (lines.length !== this.list.children.length || lines.some((line, i) => line !== this.list.children[i])) {
      this.list.replaceChildren(...lines);
    }
  }

  /** @param {Job} job */
  #line(job) {
    const name = job.filename ?? job.job_id;
    const part = partOf(job.progress);
    const problem = h("div");
    const act = (/** @type {string} */ label, /** @type {() => Promise<void>} */ what) => h("button", { type: "button",
      "aria-label": `${label}: ${name}`, onclick: () => what().catch((error) => showError(problem, error)) }, label);
    return h("li", { "data-state": job.status },
      h("div", { class: "job-head" }, h("span", { class: "name" }, name), h("span", { class: "state" }, stateOf(job))),
      job.status === "processing" ? h("progress", { max: 1, value: part || null, "aria-label": `Progress of ${name}` }) : null,
      h("div", { class: "job-foot" },
        h("span", { class: "note facts" }, factsOf(job).join(" · ")),
        h("time", { class: "note", datetime: job.created_at }, dateTime(job.created_at)),
        FINISHED.includes(job.status) ? null : act("Cancel", () => this.#cancel(job, name)),
        this.#mayRetry(job) ? act("Try again", () => this.#retry(job, name)) : null,
        job.status === "completed" ? act("Open", () => this.#open(job, name)) : null),
      job.error ? h("p", { class: "field-error" }, job.error) : null,
      this.#isLost(job) ? h("p", { class: "note" }, "The server removed the upload when the job ended. To try again, add the file again.") : null,
      problem);
  }

  /** Whether a job can be tried again with success. @param {Job} job */
  #mayRetry(job) {
    return ["failed", "cancelled"].includes(job.status) && !UNREADABLE.includes(job.error_code ?? "") && !this.#isLost(job);
  }

  /** Whether neither the server nor this tab has the audio of a job that ended without a result. @param {Job} job */
  #isLost(job) {
    return ["failed", "cancelled"].includes(job.status) && !UNREADABLE.includes(job.error_code ?? "")
      && job.upload_bytes !== null && !this.submitted.has(job.job_id);
  }

  /** @param {Job} job @param {string} name */
  async #retry(job, name) {
    const mine = this.submitted.get(job.job_id);
    if (mine) this.remember(await enqueue(mine.source, mine.values), mine.source, mine.values);
    else await call(`/jobs/${encodeURIComponent(job.job_id)}/retry`, { method: "POST" });
    announce(`${name}: submitted again`);
    await this.refresh();
  }

  /** @param {Job} job @param {string} name */
  async #cancel(job, name) {
    try {
      await call(`/jobs/${encodeURIComponent(job.job_id)}/cancel`, { method: "POST" });
      announce(`${name}: canceled`);
    } finally {
      await this.refresh();         // the job may have ended in the meantime
    }
  }

  /** @param {Job} job @param {string} name */
  async #open(job, name) {
    const result = await call(`/jobs/${encodeURIComponent(job.job_id)}/result`);
    const title = h("h2", { tabindex: -1 }, name);
    byId("job-result").replaceChildren(h("article", { class: "pane" }, h("header", {}, title),
      jobResultView(result, name.replace(/\.[^.]*$/, ""))));
    title.focus();
  }
}

/** Return the part that is done, of the audio if its length is known, else of the inputs. @param {Job["progress"]} progress */
function partOf({ done, total, audio_sec_done: seconds, audio_sec_total: length }) {
  if (seconds && length) return seconds / length;
  return total ? done / total : 0;
}

/** Return what is known of a job: task, model, size, the length of its audio, and the time that it took. @param {Job} job */
function factsOf({ task, model, upload_bytes: size, progress, started_at: began, completed_at: ended, status }) {
  const took = began && ended && status === "completed" ? (Date.parse(ended) - Date.parse(began)) / 1000 : null;
  return [TASKS[/** @type {import("./models.js").Task} */ (task)]?.label ?? task, model, size === null ? null : bytes(size),
    progress.audio_sec_total ? `${clock(progress.audio_sec_total)} of audio` : null, took === null ? null : `took ${clock(took)}`].filter(Boolean);
}

/** Return the text for the state of a job. @param {Job} job */
function stateOf({ status, position, progress }) {
  const { audio_sec_done: seconds, audio_sec_total: length } = progress;
  if (status === "processing" && length) return `Running, ${clock(seconds ?? 0)} of ${clock(length)}`;
  if (status === "pending" && position) return `Waiting, ${position} in line`;
  return { pending: "Waiting", processing: "Running", completed: "Done", failed: "Failed", cancelled: "Canceled" }[status] ?? status;
}
