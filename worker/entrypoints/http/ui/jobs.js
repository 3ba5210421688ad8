/** Background jobs: a list that polls the server slowly, while the page is visible and a job is unfinished. */
import { ApiError, call } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { showError } from "./errors.js";
import { transcriptView } from "./transcript.js";

/**
 * @typedef {object} Job
 * @property {string} job_id
 * @property {string} status  pending, processing, completed, failed, cancelled
 * @property {string|null} filename
 * @property {string} created_at  UTC
 * @property {string|null} error
 * @property {{done: number, total: number}} progress  inputs
 * @property {number|null} position  in the queue
 */

const FINISHED = ["completed", "failed", "cancelled"];
const SOON_MS = 1500;
const SLOW_MS = 10_000;

export class Jobs {
  constructor() {
    this.list = byId("jobs");
    this.problem = byId("jobs-error");
    /** @type {Map<string, {line: HTMLElement, shown: string}>} */
    this.lines = new Map();
    this.timer = 0;
    this.wait = SOON_MS;
    this.unfinished = 0;
    document.addEventListener("visibilitychange", () => this.#later());
  }

  /** Request the list now. Show a message if the server does not support jobs. */
  async refresh() {
    clearTimeout(this.timer);
    try {
      const before = this.unfinished;
      const { jobs } = await call("/jobs?kind=transcribe&limit=50");
      this.#show(jobs);
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
    this.unfinished = jobs.filter((job) => !FINISHED.includes(job.status)).length;
    const badge = byId("jobs-open");
    badge.textContent = String(this.unfinished);
    badge.hidden = !this.unfinished;
    byId("jobs-none").hidden = jobs.length > 0;
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
    const { done, total } = job.progress;
    const created = new Date(job.created_at);
    const problem = h("div");
    const act = (/** @type {string} */ label, /** @type {() => Promise<void>} */ what) => h("button", { type: "button",
      "aria-label": `${label}: ${name}`, onclick: () => what().catch((error) => showError(problem, error)) }, label);
    return h("li", { "data-state": job.status },
      h("div", { class: "job-head" }, h("span", { class: "name" }, name), h("span", { class: "state" }, stateOf(job))),
      job.status === "processing" ? h("progress", { max: 1, value: done && total ? done / total : null, "aria-label": `Progress of ${name}` }) : null,
      job.error ? h("p", { class: "field-error" }, job.error) : null,
      h("div", { class: "job-foot" },
        h("time", { class: "note", datetime: created.toISOString() }, created.toLocaleString()),
        FINISHED.includes(job.status) ? null : act("Cancel", () => this.#cancel(job, name)),
        job.status === "completed" ? act("Open", () => this.#open(job, name)) : null),
      problem);
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
      transcriptView(result, name.replace(/\.[^.]*$/, ""), null).element));
    title.focus();
  }
}

/** Return the text for the state of a job. @param {Job} job */
function stateOf({ status, position }) {
  if (status === "pending" && position) return `Waiting, ${position} in line`;
  return { pending: "Waiting", processing: "Running", completed: "Done", failed: "Failed", cancelled: "Canceled" }[status] ?? status;
}
