/** The sources of clips: files that are chosen, dropped or pasted, and URLs. */
import { byId } from "./dom.js";
import { showError } from "./errors.js";

/**
 * Connect the inputs.
 * @param {(sources: {name: string, file: File|null, url: string|null}[]) => void} onSources
 */
export function startSources(onSources) {
  const [files, url, problem] = ["files", "url", "source-error"].map(byId);
  const take = (/** @type {Iterable<File>} */ chosen) => {
    const sources = [...chosen].map((file) => ({ name: file.name || "pasted audio", file, url: null }));
    showError(problem, null);
    if (sources.length) onSources(sources);
  };
  files.addEventListener("change", () => {
    take(files.files);
    files.value = "";               // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files ?? []));
  startDrop(take);

  const add = () => {
    const address = URL.canParse(url.value.trim()) ? new URL(url.value.trim()) : null;
    if (!address || !["http:", "https:", "s3:"].includes(address.protocol)) {
      showError(problem, new Error("This is not a URL of a file. A URL starts with https://, http:// or s3://."));
      url.focus();
      return;
    }
    showError(problem, null);
    onSources([{ name: nameOf(address), file: null, url: address.href }]);
    url.value = "";
  };
  byId("url-add").addEventListener("click", add);
  url.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();         // Enter would run the task
    add();
  });
}

/** Return the last part of the path, decoded. @param {URL} address */
function nameOf(address) {
  const last = address.pathname.split("/").pop() || address.host;
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}

/** Accept drops anywhere on the page, and highlight the frame during a drag. @param {(files: Iterable<File>) => void} take */
function startDrop(take) {
  const frame = byId("drop");
  let inside = 0;
  const show = (/** @type {number} */ change) => {
    inside = change ? inside + change : 0;
    frame.classList.toggle("over", inside > 0);
  };
  document.addEventListener("dragenter", () => show(1));
  document.addEventListener("dragleave", () => show(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    show(0);
    take(event.dataTransfer?.files ?? []);
  });
}
