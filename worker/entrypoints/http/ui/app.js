/** The page: connects its parts, and holds the list of clips. */
import { ApiError, call, getKey, pageFile } from "./api.js";
import { Clip } from "./clip.js";
import { announce, byId, h } from "./dom.js";
import { showError } from "./errors.js";
import { pluralize } from "./format.js";
import { Jobs } from "./jobs.js";
import { startKey } from "./key.js";
import { TASKS, nameOf, tasksOf } from "./models.js";
import { startRecorder } from "./recorder.js";
import { saveAllButtons } from "./saving.js";
import { Settings } from "./settings.js";
import { startSources } from "./sources.js";
import { enqueue } from "./tasks.js";
import { startTheme } from "./theme.js";
import { Weights } from "./weights.js";

/** The number of clips in flight at a time; the server batches them. */
const AT_ONCE = 4;

/** @type {Clip[]} */
const clips = [];
/** @type {Clip|null} */
let chosen = null;
/** @type {Clip|null} */
let recorded = null;
let enqueuing = false;
const settings = new Settings(refresh);
const jobs = new Jobs();
const weights = new Weights(loadModels);

/** Return the clips that the button runs: those that lack the task, or else the selected clip with other options. @returns {Clip[]} */
function due() {
  const { task } = settings;
  const values = settings.values();
  // A score compares one clip with its reference.
  const lacking = task === "score" ? [] : clips.filter((clip) => clip.lacks(task, values));
  return lacking.length || !chosen?.mayRepeat(task, values) ? lacking : [chosen];
}

/** Show what the clips and the options allow. */
function refresh() {
  const [run, background] = [byId("run"), byId("background")];
  const { task } = settings;
  const { label } = TASKS[task];
  const waiting = due();
  const again = waiting[0]?.finished.has(task);
  run.textContent = again ? `${label} again` : waiting.length > 1 ? `${label} ${pluralize(waiting.length, "clip")}` : label;
  run.hidden = task === "chat";               // a chat has a button of its own
  run.disabled = !waiting.length || !settings.models.length;
  weights.show(task === "score" ? undefined : settings.model);
  // A job has no more options than a model and a language.
  background.hidden = task !== "transcribe" || ["diarize", "channels", "keywords"].some((name) => name in settings.values());
  background.disabled = !waiting.some((clip) => clip.source.file);
  byId("go-note").hidden = task === "chat" || waiting.length > 0 || !chosen?.finished.has(task);
  chosen?.offerChat(task === "chat", () => settings.values());
  const finished = clips.filter((clip) => clip.finished.size);
  byId("save-all").hidden = finished.length < 2;
  byId("save-all-count").textContent = `${finished.length} of ${pluralize(clips.length, "clip")} done. Save all as`;
}

/** Show the clip's pane, and keep its line in place while the pane above it closes. @param {Clip} clip */
function select(clip) {
  const { top } = clip.line.getBoundingClientRect();
  chosen?.offerChat(false, () => settings.values());
  chosen = clip;
  clips.forEach((other) => other.choose(other === clip));
  scrollBy(0, clip.line.getBoundingClientRect().top - top);
  refresh();
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
  announce(`${pluralize(made.length, "clip")} added`);
  select(made[0]);
  showList();
  if (location.hash === "#/jobs") location.hash = "#/clips";
  return made[0];
}

/** Add a recording. Its captions become its transcript, unless the user transcribes it first. @param {File} file @param {Promise<import("./subtitles.js").Transcript|null>} captions */
async function addRecording(file, captions) {
  const { model } = settings;
  const clip = add([{ name: file.name, file, url: null }]);
  recorded = clip;
  const transcript = await captions;
  if (!transcript || !clips.includes(clip)) return;
  clip.adopt({ model: model?.id, ...transcript });
  refresh();
}

function showList() {
  byId("empty").hidden = clips.length > 0;
  byId("clips").hidden = clips.length === 0;
  refresh();
}

/** Add the sample of the page, and run the selected task on it. */
async function addSample() {
  try {
    const file = new File([await pageFile("/ui/sample.mp3")], "sample.mp3", { type: "audio/mpeg" });
    add([{ name: file.name, file, url: null }]);
    await run();
  } catch (error) {
    showError(byId("page-error"), error);
  }
}

/** Scroll to a clip that is far down the page: on a phone, the clips are below the form. @param {Clip|null} clip */
function reveal(clip) {
  if (clip && clip.line.getBoundingClientRect().top > innerHeight / 2) clip.line.scrollIntoView();
}

async function run() {
  if (!settings.check()) return;
  const { task, model } = settings;
  if (task === "chat") return;
  const values = settings.values();
  const waiting = due();
  reveal(chosen);
  const lane = async () => {
    for (let clip = waiting.shift(); clip; clip = waiting.shift()) {
      const running = clip.run(task, values);
      refresh();
      await running;
      refresh();
      // Only now is the page long enough. A user who has scrolled back to the form stays there.
      if (clip === chosen && clip.line.getBoundingClientRect().top < innerHeight) reveal(clip);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
  if (model && !model.loaded) await loadModels();             // the model is loaded now
}

async function runInBackground() {
  if (enqueuing) return;
  enqueuing = true;
  const values = settings.values();
  try {
    for (const { source } of due().filter((clip) => clip.source.file)) jobs.remember(await enqueue(source, values), source, values);
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
    const { data: listed, scoring_models: scoring } = await call("/v1/models");
    const data = listed.filter(({ id, root }) => id === root);  // without aliases
    showError(byId("page-error"), null);
    settings.fill(data, scoring);
    showAbilities(data, scoring);
  } catch (error) {
    showError(byId("page-error"), error, { retry: loadModels });
  }
}

/** Fill the empty page: what the server can do, and how a program calls it. @param {import("./models.js").Model[]} models @param {string[]} scoring */
function showAbilities(models, scoring) {
  byId("abilities").replaceChildren(...tasksOf(models, scoring).map((task) =>
    h("div", {}, h("dt", {}, TASKS[task].label), h("dd", {}, TASKS[task].about))));
  const model = models.find((one) => one.default);
  byId("snippet").textContent = [`curl ${location.origin}/v1/audio/transcriptions`, getKey() && '-H "Authorization: Bearer $API_KEY"',
    "-F file=@clip.mp3", model && `-F model=${nameOf(model)}`].filter(Boolean).join(" \\\n  ");
}

startTheme();
startKey();
byId("save-all-buttons").append(...saveAllButtons(() => clips.flatMap(({ name, finished }) =>
  [...finished].map(([task, { result }]) => ({ name, task, result })))));
startSources(add);
startRecorder(addRecording, () => {
  if (!recorded || !clips.includes(recorded)) return;
  select(recorded);
  recorded.player.seek(0, true);
}, () => (settings.task === "transcribe" && settings.model ? settings.values() : null));
byId("panel").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  run();
});
byId("background").addEventListener("click", runInBackground);
byId("sample").addEventListener("click", addSample);
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#/")) showView(true);       // the skip link has another kind of hash
});
showView(false);
refresh();
loadModels();
