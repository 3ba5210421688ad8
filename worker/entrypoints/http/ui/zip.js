/** A ZIP archive of texts, stored without compression: the archive only keeps the files of many clips together. */

/** @typedef {{name: string, text: string}} TextFile */

const UTF8_NAMES = 0x0800;
const VERSION = 20;
const CRC = Uint32Array.from({ length: 256 }, (_, i) => {
  let value = i;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/**
 * Return the archive. Two files of one name get different names, and characters that a file system may reject become "_".
 * @param {TextFile[]} files
 * @param {Date} [now]  the time that the archive gives the files
 * @returns {Blob}
 */
export function zip(files, now = new Date()) {
  const encoder = new TextEncoder();
  const time = now.getHours() << 11 | now.getMinutes() << 5 | now.getSeconds() >> 1;
  const date = (now.getFullYear() - 1980) << 9 | (now.getMonth() + 1) << 5 | now.getDate();
  /** @type {Uint8Array[]} */
  const [parts, directory] = [[], []];
  let offset = 0;
  const names = unique(files.map((file) => file.name.replace(/[/\\:*?"<>|\x00-\x1f]/g, "_")));
  files.forEach(({ text }, i) => {
    const [name, data] = [encoder.encode(names[i]), encoder.encode(text)];
    /** @type {[number, number][]} the fields that both headers share, each with its bytes */
    const shared = [[VERSION, 2], [UTF8_NAMES, 2], [0, 2], [time, 2], [date, 2], [crc(data), 4], [data.length, 4],
      [data.length, 4], [name.length, 2], [0, 2]];
    const local = record([[0x04034b50, 4], ...shared]);
    directory.push(record([[0x02014b50, 4], [VERSION, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), name);
    parts.push(local, name, data);
    offset += local.length + name.length + data.length;
  });
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]]);
  return new Blob(/** @type {BlobPart[]} */ ([...parts, ...directory, end]), { type: "application/zip" });
}

/** Return the numbers in little-endian order. @param {[number, number][]} fields  each number with its bytes, 2 or 4 */
function record(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [value, bytes] of fields) {
    if (bytes === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += bytes;
  }
  return new Uint8Array(view.buffer);
}

/** @param {Uint8Array} data */
function crc(data) {
  let value = -1;
  for (const byte of data) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ -1) >>> 0;
}

/** Return the names, in which a repeated one gets a number: "a.txt", "a (2).txt". @param {string[]} names */
function unique(names) {
  const taken = new Set();
  return names.map((name) => {
    let free = name;
    for (let n = 2; taken.has(free.toLowerCase()); n += 1) free = name.replace(/(\.[^.]*)?$/, ` (${n})$1`);
    taken.add(free.toLowerCase());
    return free;
  });
}
