/** Audio in the browser: the shape of a waveform, and recordings as 16 kHz WAV. */

/** @typedef {{peaks: Float32Array, duration: number}} Shape  peaks: the peak of each interval, 0 to 1; duration: seconds */

/** The largest file that is drawn: decoding takes 4 bytes per sample and channel, so larger ones are only played. */
export const DRAWN_BYTES = 80e6;
const DRAWN_HZ = 8000;
const SPEECH_HZ = 16000;

/**
 * Return the peaks of a file over time. Rejects if the browser cannot decode the file.
 * @param {Blob} file
 * @param {number} [most]  the maximum number of peaks
 * @returns {Promise<Shape>}
 */
export async function shapeOf(file, most = 4000) {
  if (file.size > DRAWN_BYTES) throw new Error(`${file.size} bytes are too many to draw`);
  const audio = await decode(file, DRAWN_HZ);
  const samples = mono(audio);
  const count = Math.max(1, Math.min(most, Math.floor(samples.length / 16)));
  const peaks = new Float32Array(count);
  for (let i = 0; i < count; i += 1) {
    const end = Math.floor((i + 1) * samples.length / count);
    for (let j = Math.floor(i * samples.length / count); j < end; j += 1) peaks[i] = Math.max(peaks[i], Math.abs(samples[j]));
  }
  return { peaks, duration: audio.duration };
}

/**
 * Convert a recording to 16-bit mono WAV, in which a player can seek and which a chat accepts.
 * @param {Blob} file
 * @returns {Promise<Blob>}
 */
export async function toWav(file) {
  const samples = mono(await decode(file, SPEECH_HZ));
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (/** @type {number} */ at, /** @type {string} */ chars) =>
    [...chars].forEach((char, i) => view.setUint8(at + i, char.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SPEECH_HZ, true);
  view.setUint32(28, 2 * SPEECH_HZ, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

/**
 * Return a file in the form of OpenAI's `input_audio`: base64 of WAV or MP3.
 * @param {File} file
 * @returns {Promise<{data: string, format: "wav"|"mp3"}>}
 */
export async function inputAudio(file) {
  const mp3 = /\.mp3$/i.test(file.name) || file.type === "audio/mpeg";
  const wav = /\.wav$/i.test(file.name);
  return { data: await base64(mp3 || wav ? file : await toWav(file)), format: mp3 ? "mp3" : "wav" };
}

/** @param {Blob} file @returns {Promise<string>} */
function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** @param {Blob} file @param {number} rate  Hz @returns {Promise<AudioBuffer>} */
async function decode(file, rate) {
  return new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
}

/** @param {AudioBuffer} audio @returns {Float32Array} */
function mono(audio) {
  const mixed = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel += 1) {
    audio.getChannelData(channel).forEach((sample, i) => { mixed[i] += sample / audio.numberOfChannels; });
  }
  return mixed;
}
