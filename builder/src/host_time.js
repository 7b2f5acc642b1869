"use strict";
/*
 * Seconds of the host for the rows of a step, for which a faster GPU waits; the twin of wishbone.planning.host_time.
 */
{
  const inNode = typeof require !== "undefined";
  const { adapted } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { EIGHT_BITS } = constants["planning.memory"];
  const { AGAIN, LAYER, PARAMETER } = constants["planning.host_time"];

  /** Parameters of a layer as FSDP counts them: weights, with their scales in 8 bits, factors of adapters, norms. */
  function parametersOf(shape, plan) {
    const count = (linears) => linears.reduce((sum, linear) => sum + linear.count, 0);
    const weights = count(shape.linears) * (EIGHT_BITS.includes(plan.weights) ? 2 : 1);
    const factors = plan.method === "lora" ? 2 * count(adapted(shape, plan)) : 0;
    return (weights + factors) / shape.layers + shape.norms;
  }

  /** Seconds that a step takes at least because of its host; 0 where passes are recorded. */
  function hostSeconds(shape, plan, rows, recomputed, offload, divided) {
    const recorded = plan.method === "lora" && !(recomputed || offload || divided || shape.recurrent);
    if (plan.device !== "cuda" || recorded) return 0;
    let layer = LAYER + AGAIN * recomputed + (shape.recurrent / shape.layers) * shape.scan.host;
    if (divided) layer += PARAMETER * parametersOf(shape, plan);
    return rows * shape.layers * layer;
  }

  const parts = { hostSeconds };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
