"use strict";
/*
 * Leafs through the pairs of the page: filter, search, previous and next. Text of the data enters the page only as text
 * nodes, so it is never markup.
 */
const data = JSON.parse(document.getElementById("pairs").textContent);
const control = (name) => document.getElementById(name);
const state = { shown: [], at: 0 };

function node(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Control characters as their pictures, so that they are seen. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (letter) =>
    letter === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + letter.charCodeAt(0)));
}

/** A text as nodes, with what is searched for marked. */
function marked(text, wanted) {
  const shown = visible(text);
  const parts = [];
  if (!wanted) return [shown];
  const folded = shown.toLowerCase();
  if (folded.length !== shown.length) return [shown];
  let from = 0;
  for (let at = folded.indexOf(wanted); at >= 0; at = folded.indexOf(wanted, from)) {
    parts.push(shown.slice(from, at), node("mark", "", shown.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [...parts, shown.slice(from)];
}

function asRead(turns, wanted) {
  return turns.map(([role, text]) => {
    const turn = node("div", "turn");
    if (role) turn.append(node("h4", "", visible(role)));
    const prose = text.trim() ? node("div", "prose", ...marked(text, wanted)) : node("p", "empty", "(empty)");
    prose.dir = "auto";
    turn.append(prose);
    return turn;
  });
}

function asSeen(tokens, trained, wanted) {
  const prose = node("div", trained ? "prose trained" : "prose");
  prose.dir = "auto";
  for (const token of tokens) {
    const special = Array.isArray(token);
    prose.append(node("span", special ? "special" : "token", ...marked(special ? token[0] : token, wanted)));
  }
  return tokens.length ? [prose] : [node("p", "empty", "(no tokens)")];
}

function side(pair, name, title, wanted) {
  const seen = control("seen")?.checked && pair.tokens;
  const index = data.sides.indexOf(name);
  const length = `${pair.lengths[index].toLocaleString("en")} ${data.unit}`;
  const heading = node("h3", "", title, " ", node("small", "", seen && name !== "prompt" ? `${length}, trained` : length));
  const content = seen ? asSeen(pair.tokens[name], name !== "prompt", wanted) : asRead(pair.read[name], wanted);
  const made = node("section", name, heading, ...content);
  return made;
}

function haystack(pair) {
  return [pair.place, ...data.sides.flatMap((name) => pair.read[name].map((turn) => turn[1]))].join("\n").toLowerCase();
}
const haystacks = data.pairs.map(haystack);

function select() {
  const wanted = control("search").value.toLowerCase();
  const fault = control("filter").value;
  const fits = (pair, index) =>
    (fault === "" || (fault === "none" ? pair.faults.length === 0 : pair.faults.includes(fault))) && haystacks[index].includes(wanted);
  state.shown = data.pairs.filter(fits);
  state.at = 0;
  show();
}

function show() {
  const pair = state.shown[state.at];
  const count = state.shown.length;
  control("previous").disabled = state.at === 0;
  control("next").disabled = state.at + 1 >= count;
  control("count").textContent = count ? `${state.at + 1} of ${count}` : "no pair fits";
  const place = control("pair");
  place.replaceChildren();
  if (!pair) return;
  const wanted = control("search").value.toLowerCase();
  const faults = pair.faults.map((name) => node("span", `badge ${data.kinds[name].severity}`, data.kinds[name].label));
  place.append(node("h2", "", visible(pair.place)), node("p", "faults", ...faults));
  if (control("seen")?.checked && !pair.tokens) place.append(node("p", "empty", "The chat template refuses this pair: it is shown as read."));
  place.append(
    side(pair, "prompt", "Prompt", wanted),
    node("div", "sides", side(pair, "chosen", "Chosen", wanted), side(pair, "rejected", "Rejected", wanted)),
  );
}

function leaf(step) {
  const at = state.at + step;
  if (at < 0 || at >= state.shown.length) return;
  state.at = at;
  show();
}

control("search").addEventListener("input", select);
control("filter").addEventListener("change", select);
control("previous").addEventListener("click", () => leaf(-1));
control("next").addEventListener("click", () => leaf(1));
for (const name of ["seen", "read"]) control(name)?.addEventListener("change", show);
for (const button of document.querySelectorAll("button[data-fault]")) {
  button.addEventListener("click", () => {
    control("filter").value = button.dataset.fault;
    select();
    control("leaf").scrollIntoView();
    control("filter").focus({ preventScroll: true });
  });
}
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft") leaf(-1);
  if (event.key === "ArrowRight") leaf(1);
});
control("leaf").hidden = false;
select();
