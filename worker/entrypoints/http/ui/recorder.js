/** The microphone: a level while it runs, and a WAV when it stops. */
import { toWav } from "./audio.js";
import { announce, byId } from "./dom.js";
import { showError } from "./errors.js";
import { clock } from "./format.js";

/**
 * Starts the record button.
 * @param {(file: File) => void} onRecorded
 * @param {() => void} onAgain  the reader wants to hear the last recording
 */
export function startRecorder(onRecorded, onAgain) {
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
    recorder = running;
    /** @type {Blob[]} */
    const parts = [];
    running.ondataavailable = (event) => parts.push(event.data);
    running.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      if (recorder === running) recorder = null;         // it ended by itself: the microphone is gone
      show(recorder !== null);                           // the next may have begun already
      try {
        const wav = await toWav(new Blob(parts, { type: running.mimeType }));
        count += 1;
        onRecorded(new File([wav], `recording-${count}.wav`, { type: "audio/wav" }));
        announce("Recording added");
      } catch {
        showError(problem, new Error("Nothing was recorded. Hold on a little longer, and check the microphone."));
      }
      show(recorder !== null);
    };
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
 * Shows the level and the time as long as `running`.
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
    // In decibels, -60 to 0: loudness as it is heard.
    level.value = Math.max(0, 1 + Math.log10(power + 1e-9) / 6);
    time.textContent = clock((performance.now() - began) / 1000);
    requestAnimationFrame(tick);
  };
  tick();
}

/** @param {unknown} error */
function refusal(error) {
  if (!navigator.mediaDevices) return "The microphone needs https, or this machine's own address (localhost).";
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") return "The browser did not allow the microphone. Allow it for this page, and try again.";
  return name === "NotFoundError" ? "No microphone was found." : `The microphone cannot be used: ${error}`;
}
