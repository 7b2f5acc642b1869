"use strict";
/*
 * What the rules read: a situation, what its GPU can do, and the memory that its model would take, as in
 * wishbone.planning.facts, which has the equations.
 */
{
  const inNode = typeof require !== "undefined";
  const { GIB, estimateMemory } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { FILE_FORMATS, FULL_ROW, LEAST, ROOMY } = constants["planning.facts"];
  const { BF16_FROM, FP8_FROM, INT8_FROM } = constants["planning.gpus"];

  const hundredths = (number) => Math.floor(100 * number + 0.5) / 100;

  /** The loader of `datasets` for a file by the end of its name, "hub" for anything else. */
  function dataFormat(data) {
    const suffix = Object.keys(FILE_FORMATS).find((end) => data.toLowerCase().endsWith(end));
    return suffix === undefined ? "hub" : FILE_FORMATS[suffix];
  }

  /** The memory facts in GiB. */
  function memoryFacts(situation, shape, gpuMemory, bf16) {
    const { prompt_tokens: prompt, completion_tokens: completion, longest_tokens: longestTokens } = situation;
    const share = completion / (prompt + completion);
    const longest = longestTokens * (1 + share);
    const scored = 2 * longestTokens * share;
    const row = Math.max(FULL_ROW, longest);
    const rowScored = (row * (2 * completion)) / (prompt + 2 * completion);
    const separate = situation.reference === "given" && situation.reference_model !== situation.model;
    const stored = situation.method === "full" ? "stored" : "none";
    const common = { reference: separate ? "separate" : stored, device: gpuMemory > 0 ? "cuda" : "cpu" };
    if (gpuMemory > 0) common.deviceMemory = gpuMemory * GIB;
    const gib = (weights, plan) => hundredths(estimateMemory(shape, { weights, ...common, ...plan }).total / GIB);
    const least = { rowTokens: longest, scoredTokens: scored, keptLayers: 0 };
    const roomy = { rowTokens: row, scoredTokens: rowScored };
    return {
      ...Object.fromEntries(LEAST.map((weights) => [`least_${weights}_gib`, gib(weights, least)])),
      least_full_gib: gib(bf16 ? "bf16" : "f32", { method: "full", ...least }),
      ...Object.fromEntries(ROOMY.map((weights) => [`roomy_${weights}_gib`, gib(weights, roomy)])),
    };
  }

  /** How many times a GPU's published int8 rate is that of FP8, to hundredths; 0 without both. */
  const int8OverFp8 = (gpu) => (gpu?.int8_tflops && gpu.fp8_tflops ? hundredths(gpu.int8_tflops / gpu.fp8_tflops) : 0);

  /** All facts that the rules name; `gpu` is null without one, and its memory in GiB then 0. */
  function factsOf(situation, shape, gpu = null, gpuMemory = 0) {
    const capability = gpu?.capability ?? 0;
    const bf16 = capability >= BF16_FROM;
    return {
      ...situation,
      data_format: dataFormat(situation.data),
      has_gpu: gpuMemory > 0,
      gpu_memory: gpuMemory,
      capability,
      bf16,
      fp8: capability >= FP8_FROM,
      int8: capability >= INT8_FROM,
      int8_over_fp8: int8OverFp8(gpu),
      model_billion: hundredths(shape.parameters / 1e9),
      ...memoryFacts(situation, shape, gpuMemory, bf16),
    };
  }

  const parts = { factsOf, int8OverFp8 };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
