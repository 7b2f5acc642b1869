"use strict";
/*
 * How long a step takes on a GPU: operations over a measured rate, and bytes over a bandwidth. wishbone.planning.step_time
 * has the equation and what it was measured against.
 */
{
  const inNode = typeof require !== "undefined";
  const { expertSeconds, keptOfExperts } = inNode ? require("./expert_time.js") : globalThis.wishbone;
  const { layerBytes } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { gpus } = inNode ? require("../data/gpus.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { LOGITS, SCAN_TRAFFIC, TRAFFIC, YARDSTICK } = constants["planning.step_time"];

  /**
   * The seconds of a step on one GPU, or null where nothing was measured that they could be derived from.
   * work: tokens, scored, contexts, passes, recomputed, rows, as in Python; plan: as for memory.
   */
  function stepSeconds(shape, plan, work, gpu) {
    const { measured, bf16_tflops: published } = gpus[YARDSTICK];
    const share = measured.bf16_tflops / published;
    const half = (plan.weights === "f16" ? gpu.fp16_tflops : gpu.bf16_tflops) ?? (["nf4", "int8"].includes(plan.weights) ? gpu.fp16_tflops : null);
    if (half === null || plan.weights === "f32" || plan.offload || plan.device !== "cuda") return null;
    const rate = share * half * 1e12;
    let linearRate = rate;
    if (plan.weights === "fp8" && gpu.fp8_tflops) linearRate = share * gpu.fp8_tflops * 1e12;
    if (plan.weights === "int8" && gpu.int8_tflops) linearRate = (measured.int8_tflops / gpus[YARDSTICK].int8_tflops) * gpu.int8_tflops * 1e12;
    const passes = work.passes + work.recomputed;
    const bandwidth = gpu.bandwidth_gbs * 1e9;
    const linear = 2 * shape.linearParameters * work.tokens;
    const head = 2 * shape.hidden * shape.vocabulary * work.scored;
    const attention = 4 * shape.query * shape.attending * work.contexts;
    const kept = layerBytes(shape, plan) - keptOfExperts(shape, plan);
    let traffic = ((TRAFFIC * passes) / 3) * work.tokens * shape.layers * kept;
    traffic += ((SCAN_TRAFFIC * passes) / 3) * work.tokens * shape.recurrent * 4 * shape.scan.held;
    traffic += LOGITS * work.passes * shape.vocabulary * work.scored;
    return passes * (linear / linearRate + attention / rate) + (work.passes * head) / rate + expertSeconds(shape, plan, work, rate, bandwidth) + traffic / bandwidth;
  }

  const parts = { stepSeconds };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
