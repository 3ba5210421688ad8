/**
 * The server: every request of the page goes through here, to the page's own origin.
 *
 * XMLHttpRequest, not fetch: it alone tells how much of an upload has been sent.
 */
import { parser } from "./sse.js";

const KEY = "aviary-api-key";

/** What the server, or the way to it, had to complain of. `status` 0: no answer at all. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, param?: string|null, code?: string|null, retryAfter?: number|null}} [details]
   */
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    /** Seconds until the same request may work. */
    this.retryAfter = retryAfter;
  }
}

/**
 * @typedef {object} Call
 * @property {string} [method]
 * @property {FormData|object} [body]  a plain object is sent as JSON
 * @property {AbortSignal} [signal]  aborting rejects with an AbortError
 * @property {(part: number) => void} [onSent]  the part of the upload that is out, 0 to 1
 * @property {(text: string) => void} [onText]  each new piece of the answer's text
 */

/** @type {(wrong: boolean) => Promise<string|null>} */
let askForKey = async () => null;

/**
 * Who is asked for the API key when the server wants one; null means that there is none.
 * @param {(wrong: boolean) => Promise<string|null>} ask  wrong: a key was sent, and refused
 */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** @param {string} key  kept for this tab only; "" forgets it */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** @returns {string} */
export function getKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/**
 * The answer's JSON. Rejects with ApiError; where the server wants a key, asks for it and tries again.
 * @param {string} path
 * @param {Call} [options]
 * @returns {Promise<any>}
 */
export async function call(path, options = {}) {
  for (;;) {
    const sent = getKey();
    try {
      return await once(path, sent, options);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      // Another request may have been told the key in the meantime.
      const key = getKey() === sent ? await askForKey(Boolean(sent)) : getKey();
      if (!key) throw error;
      setKey(key);
    }
  }
}

/**
 * Posts, and hands on each event of the answer as it comes. A server that answers in one piece gives that piece back.
 * @param {string} path
 * @param {Call} options
 * @param {(event: any) => void} onEvent
 * @returns {Promise<any>} the answer where it was not a stream, else null
 */
export async function stream(path, options, onEvent) {
  const broken = new AbortController();
  /** @type {unknown} */
  let failure = null;
  const push = parser((data) => {
    if (data === "[DONE]" || failure) return;
    try {
      const event = JSON.parse(data);
      if (event.error) throw errorOf(event, 200, null);
      onEvent(event);
    } catch (error) {
      failure = error;
      broken.abort();
    }
  });
  const signal = options.signal ? AbortSignal.any([options.signal, broken.signal]) : broken.signal;
  try {
    return await call(path, { ...options, signal, onText: push });
  } catch (error) {
    throw failure ?? error;
  }
}

/**
 * @param {string} path
 * @param {string} key
 * @param {Call} options
 * @returns {Promise<any>}
 */
function once(path, key, { method = "GET", body, signal, onSent, onText }) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    const stop = () => xhr.abort();
    let heard = 0;
    const hear = () => {
      const streamed = xhr.getResponseHeader("content-type")?.startsWith("text/event-stream") ?? false;
      if (streamed && onText && xhr.status < 300 && xhr.responseText.length > heard) {
        const text = xhr.responseText.slice(heard);
        heard += text.length;
        onText(text);
      }
      return streamed;
    };
    xhr.open(method, path);
    if (key) xhr.setRequestHeader("authorization", `Bearer ${key}`);
    xhr.upload.onprogress = onSent ? (event) => onSent(event.total ? event.loaded / event.total : 0) : null;
    xhr.onprogress = hear;
    xhr.onload = () => {
      const streamed = hear();
      const answer = streamed ? null : jsonOf(xhr.responseText);
      if (xhr.status >= 200 && xhr.status < 300) resolve(answer);
      else reject(errorOf(answer, xhr.status, xhr.getResponseHeader("retry-after")));
    };
    xhr.onerror = () => reject(new ApiError("The server cannot be reached, or broke off. Check that it runs, and try again."));
    xhr.onabort = () => reject(new DOMException("stopped", "AbortError"));
    xhr.onloadend = () => signal?.removeEventListener("abort", stop);
    if (signal?.aborted) {
      reject(new DOMException("stopped", "AbortError"));
      return;
    }
    signal?.addEventListener("abort", stop);
    if (body === undefined || body instanceof FormData) xhr.send(body ?? null);
    else {
      xhr.setRequestHeader("content-type", "application/json");
      xhr.send(JSON.stringify(body));
    }
  });
}

/** @param {string} text */
function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * @param {any} answer  OpenAI's {"error": {…}}, or the {"detail": …} of a bare framework, or nothing readable
 * @param {number} status
 * @param {string|null} retryAfter  seconds, or a date
 */
function errorOf(answer, status, retryAfter) {
  const { message, param, code } = answer?.error ?? {};
  const detail = typeof answer?.detail === "string" ? answer.detail : null;
  const seconds = retryAfter === null ? null : Number(retryAfter) || Math.max(0, (Date.parse(retryAfter) - Date.now()) / 1000);
  return new ApiError(message ?? detail ?? `The server answered with status ${status}.`,
    { status, param, code, retryAfter: Number.isFinite(seconds) ? seconds : null });
}
