/**
 * The connection to the server: the page sends every request through this module, to its own origin.
 *
 * Requests of work use XMLHttpRequest, because fetch does not report how much of an upload has been sent.
 */
import { parser } from "./sse.js";

const KEY = "aviary-api-key";

/** An error of the server or of the connection. `status` is 0 if there was no response. */
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
    /** Seconds until the same request may succeed. */
    this.retryAfter = retryAfter;
  }
}

/**
 * @typedef {object} Call
 * @property {string} [method]
 * @property {FormData|object} [body]  a plain object is sent as JSON
 * @property {AbortSignal} [signal]  aborting it rejects the call with an AbortError
 * @property {(part: number) => void} [onSent]  the part of the upload that has been sent, 0 to 1
 * @property {(text: string) => void} [onText]  each new piece of a streamed response
 */

/** @type {(wrong: boolean) => Promise<string|null>} */
let askForKey = async () => null;

/**
 * Set the function that returns an API key when the server requires one, or null if the user enters none.
 * @param {(wrong: boolean) => Promise<string|null>} ask  wrong: the server has rejected a key
 */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Store the key for this tab only. @param {string} key  "" removes it */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Return the stored key, or "". @returns {string} */
export function getKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/**
 * Return a file of the page, which requires no key. Rejects with ApiError.
 * @param {string} path
 * @returns {Promise<Blob>}
 */
export async function pageFile(path) {
  const response = await fetch(path).catch(() => null);
  if (!response?.ok) throw new ApiError(`The server does not send ${path}.`, { status: response?.status });
  return response.blob();
}

/**
 * Return the JSON of a response. If the server requires a key, ask for one and try again. Rejects with ApiError.
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
      // Another request may have received the key in the meantime.
      const key = getKey() === sent ? await askForKey(Boolean(sent)) : getKey();
      if (!key) throw error;
      setKey(key);
    }
  }
}

/**
 * Send a request, and pass each event of a streamed response to `onEvent` as it arrives.
 * @param {string} path
 * @param {Call} options
 * @param {(event: any) => void} onEvent
 * @param {(done: number, total: number) => void} [onProgress]  seconds of audio that are transcribed
 * @returns {Promise<any>} the JSON of a response that is not a stream, else null
 */
export async function stream(path, options, onEvent, onProgress) {
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
  }, (comment) => {
    const [, done, total] = comment.match(/^transcribed ([\d.]+) of ([\d.]+) s$/) ?? [];
    if (total) onProgress?.(Number(done), Number(total));
  });
  const signal = options.signal ? AbortSignal.any([options.signal, broken.signal]) : broken.signal;
  try {
    return await call(path, { ...options, signal, onText: push });
  } catch (error) {
    throw failure ?? error;
  }
}

/**
 * Send a request once, and return the JSON of the response, or null for a stream.
 * @param {string} path
 * @param {string} key
 * @param {Call} options
 * @returns {Promise<any>}
 */
function once(path, key, { method = "GET", body, signal, onSent, onText }) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    const stop = () => xhr.abort();
    let received = 0;
    const receive = () => {
      const streamed = xhr.getResponseHeader("content-type")?.startsWith("text/event-stream") ?? false;
      if (streamed && onText && xhr.status < 300 && xhr.responseText.length > received) {
        const text = xhr.responseText.slice(received);
        received += text.length;
        onText(text);
      }
      return streamed;
    };
    xhr.open(method, path);
    if (key) xhr.setRequestHeader("authorization", `Bearer ${key}`);
    xhr.upload.onprogress = onSent ? (event) => onSent(event.total ? event.loaded / event.total : 0) : null;
    xhr.onprogress = receive;
    xhr.onload = () => {
      const streamed = receive();
      const answer = streamed ? null : jsonOf(xhr.responseText);
      if (xhr.status >= 200 && xhr.status < 300) resolve(answer);
      else reject(errorOf(answer, xhr.status, xhr.getResponseHeader("retry-after")));
    };
    xhr.onerror = () => reject(new ApiError("The server is unreachable or closed the connection. Check that it is running, and try again."));
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

/** Return the parsed text, or null if it is not JSON. @param {string} text */
function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Return the error of a failed response.
 * @param {any} answer  OpenAI's {"error": {…}}, the {"detail": …} of a web framework, or null
 * @param {number} status
 * @param {string|null} retryAfter  seconds, or a date
 */
function errorOf(answer, status, retryAfter) {
  const { message, param, code } = answer?.error ?? {};
  const detail = typeof answer?.detail === "string" ? answer.detail : null;
  const seconds = retryAfter === null ? null : Number(retryAfter) || Math.max(0, (Date.parse(retryAfter) - Date.now()) / 1000);
  return new ApiError(message ?? detail ?? `The server responded with status ${status}.`,
    { status, param, code, retryAfter: Number.isFinite(seconds) ? seconds : null });
}
