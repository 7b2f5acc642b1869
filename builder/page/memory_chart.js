"use strict";
/* Memory as stacked bars on one scale against the limit of the card: this plan in full, other formats of the weights
   below it. The chart is a picture of the table beside it, which says the same in numbers. */
{
  const { GIB, constants, html, svg } = globalThis.wishbone;
  const { SPARE } = constants["engine.fitting"];
  const ROW = { first: 40, other: 16 };
  const GAP = 26;
  const TOP = 24;
  const OVER = 2; // how far lines reach beyond a bar

  /** A step of 1, 2 or 5 times a power of ten that makes at most `most` marks up to `end`. */
  function markStep(end, most) {
    const power = 10 ** Math.floor(Math.log10(end / most));
    return [1, 2, 5, 10].map((factor) => factor * power).find((step) => end / step <= most);
  }

  function bar(row, top, height, scale, limit) {
    let left = 0;
    const group = svg("g", { class: "bar" });
    for (const { key, bytes } of row.items) {
      const width = (bytes / GIB) * scale;
      if (width > 0.05) group.append(svg("rect", { class: `item-${key}`, x: left, y: top, width: Math.max(width - (width > 3 ? 1 : 0), 0.3), height }));
      left += width;
    }
    if (limit !== null && left > limit * scale + 0.5) {
      const frame = { x: limit * scale, y: top, width: left - limit * scale, height };
      group.append(svg("rect", { class: "beyond", ...frame }), svg("rect", { class: "frame", ...frame }));
    }
    return group;
  }

  /**
   * Draw rows `{name, items: [{key, bytes}], total}` into `place`.
   * limit: GiB of the card, or null; room: how much of it a plan may take; width: pixels there are.
   */
  function drawMemory(place, rows, limit, room, width, description) {
    if (width === 0) return;
    const largest = Math.max(limit ?? 0, ...rows.map((row) => row.total / GIB)) * 1.04;
    const scale = width / largest;
    const picture = svg("svg", { class: "bars", role: "img", "aria-label": description });
    const hatch = svg("pattern", { id: "beyond", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
    hatch.append(svg("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 7 }));
    const marks = svg("g");
    picture.append(svg("defs", {}, hatch), marks);
    const names = svg("g");
    const beside = []; // where bars are, and lines may be; names stand between
    let top = TOP;
    rows.forEach((row, index) => {
      const height = index ? ROW.other : ROW.first;
      beside.push({ from: top + 20 - OVER, to: top + 20 + height + OVER });
      const total = `${(row.total / GIB).toFixed(1)} GiB`;
      names.append(svg("text", { class: "name", x: 0, y: top + 13 }, row.name, svg("tspan", { class: "total", dx: 8 }, total)));
      picture.append(bar(row, top + 20, height, scale, limit));
      top += 20 + height + GAP - 8;
    });
    const end = top + 2;
    const step = markStep(largest, width < 500 ? 4 : 8);
    for (let at = 0; at <= largest; at += step) {
      marks.append(
        ...beside.map(({ from, to }) => svg("line", { class: "grid", x1: at * scale, x2: at * scale, y1: from, y2: to })),
        svg("text", { x: at * scale, y: end + 16, "text-anchor": at ? "middle" : "start" }, at ? String(at) : "0 GiB"),
      );
    }
    if (limit !== null) {
      marks.append(...beside.map(({ from, to }) =>
        svg("rect", { class: "reserve", x: room * scale, y: from, width: (limit - room) * scale, height: to - from })));
      const anchor = limit / largest > 0.8 ? "end" : limit / largest < 0.2 ? "start" : "middle";
      picture.append(
        svg("line", { class: "limit", x1: limit * scale, x2: limit * scale, y1: 16, y2: 16 + OVER }),
        ...beside.map(({ from, to }) => svg("line", { class: "limit", x1: limit * scale, x2: limit * scale, y1: from, y2: to })),
        svg("text", { class: "limit-name", x: limit * scale, y: 12, "text-anchor": anchor }, `card ${limit.toFixed(1)} GiB`),
      );
    }
    picture.append(names);
    picture.setAttribute("viewBox", `0 0 ${width} ${end + 22}`);
    place.replaceChildren(picture);
  }

  /** Write the items `[{key, name, meaning, bytes}]` of a plan as a table into `place`; room: GiB there are, or null. */
  function writeMemory(place, items, total, room) {
    const gib = (bytes) => (bytes / GIB).toFixed(2);
    const share = (bytes) => `${((100 * bytes) / total).toFixed(1)} %`;
    place.replaceChildren(
      html("table", {},
        html("caption", {}, room === null ? "Main memory, with all activations kept." : `Of ${room.toFixed(1)} GiB that a plan may take; training leaves ${100 * SPARE} % of a card free.`),
        html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Item"), html("th", { scope: "col" }, "GiB"), html("th", { scope: "col" }, "Share"))),
        html("tbody", {}, ...items.map(({ key, name, meaning, bytes }) =>
          html("tr", {},
            html("th", { scope: "row" }, html("span", { class: `swatch item-${key}`, "aria-hidden": "true" }), name, meaning ? html("small", {}, meaning) : null),
            html("td", {}, gib(bytes)),
            html("td", {}, share(bytes))))),
        html("tfoot", {}, html("tr", {}, html("th", { scope: "row" }, "Together"), html("td", {}, gib(total)), html("td", {}, "100 %"))),
      ),
    );
  }

  globalThis.wishbone = { ...globalThis.wishbone, drawMemory, writeMemory };
}
