/** The view of a score: three meters. */
import { h, uniqueId } from "./dom.js";

const ROWS = [["sim_score", "Overall", "the mean of the other two"], ["audio_sim_score", "Sound", "similarity of the sound"],
  ["text_sim_score", "Words", "similarity of the transcripts"]];

/**
 * Return the meters of a score.
 * @param {Record<string, any>} score  0 to 1 each
 * @returns {HTMLElement}
 */
export function scoreView(score) {
  return h("div", { class: "scores" }, ...ROWS.filter(([name]) => typeof score[name] === "number").map(([name, label, about]) => {
    const id = uniqueId("score");
    return h("div", { class: "score" }, h("span", { id, class: "score-label" }, label, " ", h("span", { class: "aside" }, about)),
      h("meter", { min: 0, max: 1, low: 0.5, high: 0.8, optimum: 1, value: score[name], "aria-labelledby": id }),
      h("span", { class: "number" }, score[name].toFixed(2)));
  }));
}
