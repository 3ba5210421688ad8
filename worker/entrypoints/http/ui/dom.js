/** Elements and announcements. Only this module creates DOM nodes, and data becomes text, never markup. */

/**
 * Create an element. Attributes that are false, null or undefined are omitted; `on…` functions become listeners.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node|string|null|undefined|false)} children  strings become text nodes
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Return the element with an id of index.html. Throws if there is none.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/**
 * Announce an event to screen readers. The page shows the event elsewhere.
 * @param {string} text
 */
export function announce(text) {
  byId("status").textContent = text;
}

let ids = 0;

/**
 * Return an id that no other element has.
 * @param {string} prefix
 * @returns {string}
 */
export function uniqueId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/**
 * Download data as a file.
 * @param {string} name
 * @param {string} type  its media type
 * @param {BlobPart} data
 */
export function save(name, type, data) {
  const url = URL.createObjectURL(new Blob([data], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
