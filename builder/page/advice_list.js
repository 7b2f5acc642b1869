"use strict";
/* Advice: what is set, why, and where that is known from. Warnings come first. */
{
  const { html } = globalThis.wishbone;

  function source({ title, address }) {
    const text = address ? html("a", { href: address, rel: "noreferrer", target: "_blank" }, title) : title;
    return html("span", { class: "source" }, "Source: ", text);
  }

  function entry(advice) {
    const warning = advice.kind === "warning";
    const sets = advice.set.map(([setting, value]) => html("code", {}, `${setting}: `, html("b", {}, value)));
    return html("li", { class: warning ? "warning" : null },
      sets.length ? html("p", { class: "sets" }, ...sets) : null,
      html("p", {}, warning ? html("span", { class: "kind" }, "Warning. ") : null, advice.reason, " ", source(advice.source)));
  }

  /** Write `[{kind, set: [[setting, value]...], reason, source: {title, address}}]` into `place`. */
  function writeAdvice(place, advice) {
    const inOrder = [...advice.filter((one) => one.kind === "warning"), ...advice.filter((one) => one.kind !== "warning")];
    place.replaceChildren(html("ul", { class: "advice", role: "list" }, ...inOrder.map(entry)));
  }

  globalThis.wishbone = { ...globalThis.wishbone, writeAdvice };
}
