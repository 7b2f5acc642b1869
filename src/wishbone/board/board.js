"use strict";
/*
 * Asks for the parts of the board that changed and puts them in. The server escapes every text, and the page's policy
 * runs no script but this one. A server that is gone is asked again until it is back.
 */
{
  const EVERY = 2000;
  const SLOWEST = 15000;
  const state = document.getElementById("state");
  const tabs = document.getElementById("tabs");
  const parts = document.getElementById("parts");
  const known = new Map();
  let wait = EVERY;

  const say = (text, kind) => {
    if (state.textContent !== text) state.textContent = text;
    state.className = `badge ${kind}`;
  };

  const make = (name, settings, text) => {
    const made = Object.assign(document.createElement(name), settings);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function group(id) {
    return document.getElementById(`group-${id}`) ?? parts.appendChild(make("div", { id: `group-${id}`, className: "group" }));
  }

  /** The group that the address names, or the first one. */
  function chosen() {
    const asked = location.hash.slice(1);
    return [...tabs.children].some((tab) => tab.dataset.id === asked) ? asked : tabs.firstElementChild?.dataset.id;
  }

  function choose() {
    const now = chosen();
    for (const tab of tabs.children) {
      if (tab.dataset.id === now) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    for (const shown of parts.children) shown.hidden = shown.id !== `group-${now}`;
  }

  function showTabs(runs) {
    const wanted = runs.length === 1 ? runs : [{ id: "all", name: "All runs" }, ...runs];
    const same = wanted.length === tabs.children.length
      && wanted.every((run, at) => tabs.children[at].dataset.id === run.id && tabs.children[at].textContent === run.name);
    if (same) return;
    tabs.replaceChildren(...wanted.map(({ id, name }) => {
      const tab = make("a", { href: `#${id}` }, name);
      tab.dataset.id = id;
      return tab;
    }));
    tabs.hidden = wanted.length < 2;
    for (const old of [...parts.children]) {
      const id = old.id.slice("group-".length);
      if (wanted.some((run) => run.id === id)) continue;
      for (const name of [...known.keys()]) if (name.startsWith(`${id}/`)) known.delete(name);
      old.remove();
    }
  }

  /** Put a part in; what was open in the old one is open in the new one. */
  function put(id, name, html, order) {
    const holder = group(id);
    let part = [...holder.children].find((one) => one.dataset.name === name);
    if (!part) {
      part = make("div", { className: "part" });
      part.dataset.name = name;
      part.dataset.order = order;
      const next = [...holder.children].find((one) => Number(one.dataset.order) > order);
      holder.insertBefore(part, next ?? null);
    }
    const open = [...part.querySelectorAll("details")].map((one) => one.open);
    const scrolled = [...part.querySelectorAll(".tokens, pre, .wide")].map((one) => [one.scrollTop, one.scrollLeft]);
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? one.open; });
    part.querySelectorAll(".tokens, pre, .wide").forEach((one, at) => {
      if (scrolled[at]) [one.scrollTop, one.scrollLeft] = scrolled[at];
    });
  }

  async function ask() {
    try {
      const answer = await fetch("parts", {
        method: "POST", body: JSON.stringify(Object.fromEntries(known)), cache: "no-store", credentials: "omit",
      });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const { runs, changed } = await answer.json();
      showTabs(runs);
      for (const { group: id, name, hash, html, order } of changed) {
        put(id, name, html, order);
        known.set(`${id}/${name}`, hash);
      }
      choose();
      const live = runs.some((run) => run.live);
      say(live ? "live" : "up to date", "live");
      wait = EVERY;
    } catch (error) {
      say("the board does not answer; waiting for it", "lost");
      wait = Math.min(2 * wait, SLOWEST);
    }
    setTimeout(ask, document.hidden ? SLOWEST : wait);
  }

  addEventListener("hashchange", choose);
  ask();
}
