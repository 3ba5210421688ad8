/** An AudioWorklet: posts the microphone's samples as 16-bit PCM, mono, 50 ms at a time. */

registerProcessor("capture", class extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate / 20));
    this.filled = 0;
  }

  /** @param {Float32Array[][]} inputs */
  process([channels]) {
    for (let i = 0; i < (channels[0]?.length ?? 0); i += 1) {
      const sample = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
      this.block[this.filled] = Math.max(-1, Math.min(1, sample)) * 32767;
      this.filled += 1;
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.filled = 0;
      }
    }
    return true;
  }
});
