/** The microphone: a level meter and live captions during the recording, and a WAV file at its end. */
import { toWav } from "./audio.js";
import { announce, byId } from "./dom.js";
import { showError } from "./errors.js";
import { clock } from "./format.js";
import { Live } from "./live.js";

/**
 * Connect the record button.
 * @param {(file: File, transcript: Promise<import("./subtitles.js").Transcript|null>) => void} onRecorded  transcript: that of
 *   the captions, or null if they lack a part
 * @param {() => void} onAgain  the user wants to listen to the last recording
 * @param {() => import("./live.js").Options|null} captioning  return how to caption, or null for no captions
 */
export function startRecorder(onRecorded, onAgain, captioning) {
  /** @type {MediaRecorder|null} */
  let recorder = null;
  let asking = false;
  let count = 0;
  const [button, label, level, time, again, problem] =
    ["record", "record-label", "level", "record-time", "record-again", "source-error"].map(byId);

  const show = (/** @type {boolean} */ on) => {
    button.classList.toggle("on", on);
    label.textContent = on ? "Stop" : "Record";
    level.hidden = !on;
    again.hidden = on || !count;
  };

  const begin = async () => {
    showError(problem, null);
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const running = new MediaRecorder(stream);
    const options = captioning();
    byId("captions").hidden = true;
    const live = options && new Live(stream, options);
    /** @type {Blob[]} */
    const parts = [];
    running.ondataavailable = (event) => parts.push(event.data);
    running.onstop = async () => {
      const transcript = live?.stop() ?? Promise.resolve(null);
      stream.getTracks().forEach((track) => track.stop());
      if (recorder === running) recorder = null;         // the recording ended by itself: the microphone was removed
      show(recorder !== null);                           // the next recording may have started
      try {
        const wav = await toWav(new Blob(parts, { type: running.mimeType }));
        count += 1;
        onRecorded(new File([wav], `recording-${count}.wav`, { type: "audio/wav" }), transcript);
        announce("Recording added");
      } catch {
        showError(problem, new Error("Nothing was recorded. Check the microphone, and record for longer."));
      }
      show(recorder !== null);
    };
    await live?.capturing;                               // the captions have all that the recording has
    recorder = running;
    running.start();
    show(true);
    announce("Recording");
    meter(stream, () => recorder === running, level, time);
  };

  button.addEventListener("click", async () => {
    if (recorder) {
      recorder.stop();
      recorder = null;
      return;
    }
    if (asking) return;
    asking = true;
    try {
      await begin();
    } catch (error) {
      showError(problem, new Error(refusal(error)));
    }
    asking = false;
  });
  again.addEventListener("click", onAgain);
}

/**
 * Show the level and the time while `running` returns true.
 * @param {MediaStream} stream @param {() => boolean} running @param {HTMLMeterElement} level @param {HTMLElement} time
 */
function meter(stream, running, level, time) {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  const samples = new Float32Array(analyser.fftSize);
  const began = performance.now();
  context.createMediaStreamSource(stream).connect(analyser);
  const tick = () => {
    if (!running()) {
      context.close();
      return;
    }
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    // In decibels, -60 to 0, which matches the loudness that people perceive.
    level.value = Math.max(0, 1 + Math.log10(power + 1e-9) / 6);
    time.textContent = clock((performance.now() - began) / 1000);
    requestAnimationFrame(tick);
  };
  tick();
}

/** Return the message for a microphone that cannot be opened. @param {unknown} error */
function refusal(error) {
  if (!navigator.mediaDevices) return "The microphone requires HTTPS or localhost.";
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") return "The browser did not allow the microphone. Allow it for this page, and try again.";
  return name === "NotFoundError" ? "No microphone was found." : `The microphone cannot be used: ${error}`;
}
