"use strict";
/*
 * What fits if a run does not, as in wishbone.planning.alternatives: the fewest and mildest changes of settings, shorter
 * pairs, and the smallest GPU. Every offer has been planned, and fits.
 */
{
  const inNode = typeof require !== "undefined";
  const { findGpu, gpuNames } = inNode ? require("./known.js") : globalThis.wishbone;
  const { int8OverFp8 } = inNode ? require("./facts.js") : globalThis.wishbone;
  const { GIB } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { graphics, planned } = inNode ? require("./planner.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { BF16_FROM, FP8_FROM, INT8_FROM, MUCH_FASTER } = constants["planning.gpus"];
  const { SHORTEST } = constants["planning.alternatives"];

  /** Changes that save memory, from the one that costs least. */
  function* changesOf(settings, gpu) {
    const full = settings["adapter.method"] === "full";
    if (settings["training.token_budget"] !== "auto") yield { "training.token_budget": "auto" };
    if (!["auto", "offload"].includes(settings["training.activations"])) yield { "training.activations": "auto" };
    if (gpu && settings["training.optimizer"] === "adamw_torch" && full) yield { "training.optimizer": "adamw_8bit" };
    if (full) yield { "adapter.method": "lora" };
    if (gpu && settings["model.quantization"] === "none" && gpu.capability >= INT8_FROM) {
      const fp8 = gpu.capability >= FP8_FROM && int8OverFp8(gpu) < MUCH_FASTER;
      yield { "adapter.method": "lora", "model.quantization": fp8 ? "fp8" : "int8" };
    }
    if (gpu && settings["model.quantization"] !== "nf4") yield { "adapter.method": "lora", "model.quantization": "nf4" };
  }

  function tried(settings, target, changes, gpu = null) {
    const plan = planned({ ...settings, ...changes }, target);
    if (!plan.fits) return null;
    return { changes: Object.entries(changes).filter(([name, value]) => settings[name] !== value), gpu, memory: plan.memory.total };
  }

  /** The longest sequences with which the run fits, in whole 64s. */
  function shorter(settings, target, base) {
    const { longest_tokens: longest } = target.facts;
    let [low, high, best] = [0, Math.floor(Math.min(longest, settings["data.max_length"]) / SHORTEST), null];
    while (low < high) {
      const middle = Math.floor((low + high + 1) / 2);
      const found = tried(settings, target, { ...base, "data.max_length": SHORTEST * middle });
      [low, high, best] = found ? [middle, high, found] : [low, middle - 1, best];
    }
    return best;
  }

  /** The smallest known GPU, larger than the one at hand, on which the run with these changes fits. */
  function onAnotherGpu(settings, target, changes) {
    if (!target.gpu) return null;
    const least = { fp8: FP8_FROM, int8: INT8_FROM }[{ ...settings, ...changes }["model.quantization"]] ?? BF16_FROM;
    const larger = gpuNames.filter((name) => !name.includes("Laptop")).map(findGpu).filter((gpu) => gpu.memory_gib * GIB > target.machine.memory && gpu.capability >= least);
    larger.sort((one, other) => one.memory_gib - other.memory_gib || one.bandwidth_gbs - other.bandwidth_gbs);
    for (const gpu of larger) {
      const found = tried(settings, { ...target, ...graphics(gpu) }, changes, gpu.name);
      if (found) return found;
    }
    return null;
  }

  /** What fits instead of settings that do not, mildest first: `[{changes: [[name, value]...], gpu, memory}]`. */
  function alternatives(settings, target) {
    const all = {};
    let eased = null;
    for (const change of changesOf(settings, target.gpu)) {
      Object.assign(all, change);
      if (all["adapter.method"] === "lora") delete all["training.optimizer"]; // an adapter's states are small
      eased = tried(settings, target, change) ?? tried(settings, target, all);
      if (eased) break;
    }
    const short = shorter(settings, target, eased ? {} : all) ?? shorter(settings, target, {});
    const bases = Object.keys(all).length && !eased ? [{}, all] : [{}];
    return [eased, short, ...bases.map((base) => onAnotherGpu(settings, target, base))].filter(Boolean);
  }

  const parts = { alternatives };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
