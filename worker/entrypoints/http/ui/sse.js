/** A parser for server-sent events: text in pieces of any size → the data of each event. */

/**
 * Return a function that takes the next piece of text and calls `onData` with the data of each event that is complete.
 * Names and ids of events are ignored. An event that is incomplete at the end is dropped.
 * @param {(data: string) => void} onData
 * @param {(comment: string) => void} [onComment]
 * @returns {(text: string) => void}
 */
export function parser(onData, onComment) {
  let rest = "";
  /** @type {string[]} */
  let data = [];
  return (text) => {
    rest += text;
    // A \r at the end may be the first half of a \r\n.
    const end = rest.endsWith("\r") ? rest.length - 1 : rest.length;
    const lines = rest.slice(0, end).split(/\r\n|\n|\r/);
    rest = lines.pop() + rest.slice(end);
    for (const line of lines) {
      if (line.startsWith(":")) onComment?.(line.slice(1).trim());
      else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line === "" && data.length) {
        const whole = data.join("\n");
        data = [];
        onData(whole);
      }
    }
  };
}
