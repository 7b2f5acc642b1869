"use strict";
/*
 * Seconds of a mixture's experts in a step on a GPU. wishbone.planning.expert_time has the equation and what it was
 * measured against.
 */
{
  const inNode = typeof require !== "undefined";
  const { adaptedOfExpert, elementBytes, isFused } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { ADAPTED, CODE_BYTES, TILE, TURNED } = constants["planning.expert_time"];
  const { EIGHT_BITS } = constants["planning.memory"];

  /** The weights of the experts that a token goes to. */
  const expertsOfToken = (shape) => shape.expertLayers * shape.expertsUsed * shape.matrices * shape.hidden * shape.expertInner;

  /** The seconds of all experts in a step; 0 for a dense model. rate: operations a second; bandwidth: bytes a second. */
  function expertSeconds(shape, plan, work, rate, bandwidth) {
    if (!shape.expertLayers) return 0;
    const passes = work.passes + work.recomputed;
    const stacks = shape.expertLayers * shape.experts * shape.matrices * shape.hidden * shape.expertInner;
    const filled = work.tokens * expertsOfToken(shape) + (work.rows * stacks * TILE) / 2;
    const moved = 2 * work.tokens * shape.expertLayers * shape.expertsUsed * (5 * shape.hidden + 7.5 * shape.expertInner);
    let seconds = passes * ((2 * filled) / rate + (work.rows * 2 * stacks + moved) / bandwidth);
    if ([...EIGHT_BITS, "nf4"].includes(plan.weights)) {
      const again = work.rows * (2 + work.recomputed);
      seconds += (again * (CODE_BYTES[plan.weights] + 2) * stacks) / (TURNED * bandwidth);
    }
    if (plan.method === "lora") {
      const rows = work.tokens * shape.expertLayers * shape.expertsUsed;
      seconds += (ADAPTED * 2 * rows * adaptedOfExpert(shape, plan)) / bandwidth;
    }
    return seconds;
  }

  /** The bytes a token that a layer keeps of its experts, which expertSeconds counts otherwise. */
  function keptOfExperts(shape, plan) {
    if (!shape.expertLayers || shape.inner) return 0;
    const alone = shape.mlpAlone ? shape.mlpAlone / shape.layers : 1;
    return elementBytes(plan) * (isFused(plan) ? 2 : 4) * shape.expertsUsed * shape.expertInner * alone;
  }

  const parts = { expertSeconds, keptOfExperts };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
