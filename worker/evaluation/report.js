"use strict";

const rows = [...document.querySelectorAll("tbody tr")];

// A player for the audio of a file. It is made when somebody starts it: a page of thousands of players takes minutes.
function play(link, button) {
  for (const other of document.querySelectorAll("audio")) other.pause();
  const player = new Audio(link.href);
  player.controls = true;
  player.ariaLabel = link.textContent;
  button.replaceWith(player);
  player.focus();
  player.play().catch(() => player.replaceWith("This browser cannot play the file."));
}

for (const link of document.querySelectorAll("tbody th a")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Play";
  button.ariaLabel = `Play ${link.textContent}`;
  button.addEventListener("click", () => play(link, button));
  link.after(button);
}

// The filter: files whose name, label or transcript contains a text, and whose word error rate is not below a rate.
const [form, text, rate, shown] = ["filter", "text", "rate", "shown"].map((id) => document.getElementById(id));
const texts = rows.map((row) => row.dataset.text.toLowerCase());

function filter() {
  const sought = text.value.trim().toLowerCase();
  rows.forEach((row, i) => {
    row.hidden = !texts[i].includes(sought) || Number(row.dataset.rate) < Number(rate.value);
  });
  shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} files`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
