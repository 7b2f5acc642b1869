"use strict";
/* One pair as a row: the prompt once, both completions beside it, and what two plain sequences would have taken. */
{
  const { html, svg } = globalThis.wishbone;
  const WIDTH = 340;
  const GAP = 2;

  /** Draw a pair of `prompt` and twice `completion` tokens into `figure`. */
  function drawRow(figure, prompt, completion) {
    if (!(prompt > 0 && completion > 0)) {
      figure.replaceChildren();
      return;
    }
    const row = prompt + 2 * completion;
    const plain = 2 * (prompt + completion);
    const scale = (WIDTH - 2 * GAP) / row;
    let left = 0;
    const parts = [["prompt", prompt], ["chosen", completion], ["rejected", completion]].map(([name, tokens]) => {
      const part = svg("rect", { class: name, x: left, y: 0, width: Math.max(1, tokens * scale), height: 20, rx: 3 });
      left += tokens * scale + GAP;
      return part;
    });
    figure.replaceChildren(
      svg("svg", { viewBox: `0 0 ${WIDTH} 20`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts),
      html("figcaption", {}, `Prompt, chosen, rejected in one row: ${row.toLocaleString("en")} tokens a pair where two plain sequences are ${plain.toLocaleString("en")}.`),
    );
  }

  globalThis.wishbone = { ...globalThis.wishbone, drawRow };
}
