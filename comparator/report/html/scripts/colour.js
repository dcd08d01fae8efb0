// One scale of colours for multiples of the tolerance, from a tenth to a hundred times. It is made after cividis, which
// people with any kind of colour blindness can read (Nuñez, Anderton, Renslow 2018): light pages run from pale to dark
// blue, dark pages from dark blue to yellow, so that lightness alone tells.

const LIGHT = ["#f0f2f4", "#e4e3cf", "#cfc88f", "#a59c77", "#7c7b78", "#4c556c", "#1f3b6d", "#00224e"];
const DARK = ["#1c2536", "#1f3b6d", "#4c556c", "#6c6e72", "#8e8978", "#b4a76f", "#ddc95f", "#fee838"];
const LEAST = -1;
const MOST = 2;

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** A colour of the page's style by the name of its variable. */
function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** The colour of a share of the scale, from 0 to 1. */
function scaleColour(share, dark) {
  const colours = dark ? DARK : LIGHT;
  const at = Math.min(1, Math.max(0, share)) * (colours.length - 1);
  const low = Math.floor(at);
  const [from, to] = [channels(colours[low]), channels(colours[Math.min(low + 1, colours.length - 1)])];
  return `rgb(${from.map((value, n) => Math.round(value + (to[n] - value) * (at - low))).join(" ")})`;
}

/** The colour of an error of so many times the tolerance. */
function timesColour(times, dark) {
  if (!(times > 0)) return scaleColour(0, dark);
  return scaleColour((Math.log10(times) - LEAST) / (MOST - LEAST), dark);
}
