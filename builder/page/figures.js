"use strict";
/* Figures of a plan: a name, a value, and what is to be known about it. */
{
  const { html } = globalThis.wishbone;

  /** Write `[{name, value, note}]` into a description list. */
  function writeFigures(list, figures) {
    list.replaceChildren(...figures.map(({ name, value, note }) =>
      html("div", {}, html("dt", {}, name), html("dd", {}, value, note ? html("small", {}, note) : null))));
  }

  globalThis.wishbone = { ...globalThis.wishbone, writeFigures };
}
