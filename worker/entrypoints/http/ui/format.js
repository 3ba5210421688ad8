/** Numbers, sizes, languages and times in a readable form. */

/**
 * Format seconds: 83.4 becomes "1:23", or with tenths "1:23.4".
 * @param {number} seconds
 * @param {boolean} [tenths]
 * @returns {string}
 */
export function clock(seconds, tenths = false) {
  const total = tenths ? Math.floor(seconds * 10 + 1e-6) / 10 : Math.floor(seconds + 1e-6);
  const hours = Math.floor(total / 3600);
  const minutes = Math.floor(total / 60) % 60;
  const rest = (total % 60).toFixed(tenths ? 1 : 0).padStart(tenths ? 4 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/**
 * Format a number of bytes.
 * @param {number} count
 * @returns {string}
 */
export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${Math.round(count / 1e3)} kB`;
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}

/**
 * Format a time of the server as the locale of the browser does, with the month as a word.
 * @param {string} iso
 * @returns {string}
 */
export function dateTime(iso) {
  return new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

const names = new Intl.DisplayNames(["en"], { type: "language" });

/**
 * Return the English name of a language code: "de" becomes "German". An unknown code stays the same.
 * @param {string} code
 * @returns {string}
 */
export function languageName(code) {
  try {
    return names.of(code) ?? code;
  } catch {
    return code;
  }
}

/**
 * Return at most `most` round times for an axis, with a step such as 1, 2, 5, 10, 15 or 30.
 * @param {number} duration  seconds
 * @param {number} most
 * @returns {number[]}
 */
export function ticks(duration, most) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
  const step = steps.find((seconds) => duration / seconds <= most) ?? 7200;
  return Array.from({ length: Math.floor(duration / step + 1e-6) + 1 }, (_, i) => i * step);
}

/**
 * Return a count with its noun.
 * @param {number} count
 * @param {string} noun
 * @returns {string} "1 clip", "3 clips"
 */
export function pluralize(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
