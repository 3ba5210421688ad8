/** The page: connects its parts, and holds the list of clips. */
import { ApiError, call } from "./api.js";
import { Clip } from "./clip.js";
import { announce, byId } from "./dom.js";
import { showError } from "./errors.js";
import { pluralize } from "./format.js";
import { Jobs } from "./jobs.js";
import { startKey } from "./key.js";
import { TASKS } from "./models.js";
import { startRecorder } from "./recorder.js";
import { Settings } from "./settings.js";
import { startSources } from "./sources.js";
import { enqueue } from "./tasks.js";
import { startTheme } from "./theme.js";

/** The number of clips in flight at a time; the server batches them. */
const AT_ONCE = 4;

/** @type {Clip[]} */
const clips = [];
/** @type {Clip|null} */
let chosen = null;
/** @type {Clip|null} */
let recorded = null;
let enqueuing = false;
const settings = new Settings(showButtons);
const jobs = new Jobs();

/** Return the clips that the button runs: those that lack the task, or else the selected clip. @returns {Clip[]} */
function due() {
  // A score compares one clip with its reference.
  if (settings.task === "score") return chosen && !chosen.running.has("score") ? [chosen] : [];
  const lacking = clips.filter((clip) => clip.lacks(settings.task));
  return lacking.length || !chosen || chosen.running.has(settings.task) ? lacking : [chosen];
}

function showButtons() {
  const [run, background] = [byId("run"), byId("background")];
  const { verb } = TASKS[settings.task];
  const waiting = due();
  const again = chosen !== null && waiting[0] === chosen && !chosen.lacks(settings.task);
  if (settings.task === "chat") run.textContent = `${verb} this clip`;
  else run.textContent = again ? `${verb} again` : waiting.length > 1 ? `${verb} ${pluralize(waiting.length, "clip")}` : verb;
  run.disabled = !waiting.length || !settings.models.length;
  background.hidden = settings.task !== "transcribe";
  background.disabled = !waiting.some((clip) => clip.source.file);
}

/** Show the clip's pane. @param {Clip} clip */
function select(clip) {
  chosen = clip;
  clips.forEach((other) => other.choose(other === clip));
  showButtons();
}

/** Remove the clip from the list, and select its neighbor. @param {Clip} clip */
function remove(clip) {
  const at = clips.indexOf(clip);
  clips.splice(at, 1);
  clip.close();
  announce(`${clip.source.name} removed`);
  const next = clips[Math.min(at, clips.length - 1)];
  chosen = clip === chosen ? null : chosen;
  if (next && !chosen) select(next);
  (next?.button ?? byId("files")).focus();
  showList();
}

/** @param {{name: string, file: File|null, url: string|null}[]} sources @returns {Clip} the first new clip */
function add(sources) {
  const owner = { select, remove, failed: (/** @type {unknown} */ error) => {
    if (error instanceof ApiError) settings.blame(error.param, error.message);
  } };
  const made = sources.map((source) => new Clip(source, owner));
  clips.push(...made);
  byId("clips").append(...made.map((clip) => clip.line));
  byId("panes").append(...made.map((clip) => clip.pane));
  announce(`${pluralize(made.length, "clip")} added`);
  select(made[0]);
  showList();
  if (location.hash === "#/jobs") location.hash = "#/clips";
  return made[0];
}

function showList() {
  byId("empty").hidden = clips.length > 0;
  byId("clips").hidden = clips.length === 0;
  showButtons();
}

async function run() {
  if (!settings.check()) return;
  const { task } = settings;
  if (task === "chat") {
    chosen?.talk(() => settings.values());
    return;
  }
  const values = settings.values();
  const waiting = due();
  const list = byId("clips");
  if (list.getBoundingClientRect().top > innerHeight - 120) list.scrollIntoView();     // on a phone, the list is below the form
  const lane = async () => {
    for (let clip = waiting.shift(); clip; clip = waiting.shift()) {
      const running = clip.run(task, values);
      showButtons();
      await running;
      showButtons();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
}

async function runInBackground() {
  if (enqueuing) return;
  enqueuing = true;
  const values = settings.values();
  try {
    for (const clip of due().filter((due) => due.source.file)) await enqueue(clip.source, values);
    showError(byId("go-error"), null);
    location.hash = "#/jobs";
  } catch (error) {
    const off = error instanceof ApiError && error.status === 404 && error.code !== "model_not_found";
    showError(byId("go-error"), off ? new Error("This server does not support background jobs.") : error);
  }
  enqueuing = false;
}

/** Show the view that the URL names. @param {boolean} moved  the user changed the view, so it gets the focus */
function showView(moved) {
  const view = location.hash === "#/jobs" ? "jobs" : "clips";
  for (const name of ["clips", "jobs"]) {
    byId(`view-${name}`).hidden = name !== view;
    const link = document.querySelector(`[data-view=${name}]`);
    if (name === view) link?.setAttribute("aria-current", "page");
    else link?.removeAttribute("aria-current");
  }
  if (moved) byId(`${view}-title`).focus();
  if (view === "jobs") jobs.refresh();
}

async function loadModels() {
  try {
    const { data } = await call("/v1/models");
    showError(byId("page-error"), null);
    settings.fill(data);
  } catch (error) {
    showError(byId("page-error"), error, { retry: loadModels });
  }
}

startTheme();
startKey();
startSources(add);
startRecorder((file) => { recorded = add([{ name: file.name, file, url: null }]); }, () => {
  if (!recorded || !clips.includes(recorded)) return;
  select(recorded);
  recorded.player.seek(0, true);
});
byId("panel").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  run();
});
byId("background").addEventListener("click", runInBackground);
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#/")) showView(true);       // the skip link has another kind of hash
});
showView(false);
showButtons();
loadModels();
