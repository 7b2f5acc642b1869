"use strict";
/*
 * The rows that training would run, estimated before anything is loaded: token budget, layers kept, host memory; the twin
 * of wishbone.planning.room and of the rules of wishbone.planning.budget.
 */
{
  const inNode = typeof require !== "undefined";
  const { Room, inHostMemory, treating } = inNode ? require("./execution.js") : globalThis.wishbone;
  const { fit } = inNode ? require("./fitting.js") : globalThis.wishbone;
  const { CONTEXT, MEMORY_PLAN, estimateMemory, elementBytes } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { SPARE } = constants["engine.fitting"];
  const { ROW_TOKENS, SHARE_OF_FREE_MEMORY } = constants["planning.budget"];
  const { LONGEST } = constants["planning.room"];

  /** Bytes of a device that a run should stay below; `machine` has kind, memory and free. */
  const limitOf = (machine) => (machine.kind === "cuda" ? machine.free - SPARE * machine.memory : machine.free);

  /** A given treatment on this machine: a processor has nowhere to offload to. */
  const givenOn = (machine, treatment) => (machine.kind === "cpu" && treatment === "offload" ? "recompute" : treatment);

  /** The plan of a run for a row of so many tokens, computed as `execution` says. */
  function plannedRow(plan, execution, rowTokens, layers) {
    const { offload, pieces = false, headChunk = null } = execution;
    const keptLayers = execution.room.kept(rowTokens, layers);
    return { ...plan, rowTokens, keptLayers, offload: offload === "always", pieces, headChunk };
  }

  /** What training begins with, before anything is measured. */
  function askedFor(shape, plan, machine, budget, treatment) {
    if (treatment !== "auto") return treating(budget, givenOn(machine, treatment));
    const atRest = estimateMemory(shape, { ...plan, rowTokens: 0, keptLayers: 0 }).total;
    const total = SHARE_OF_FREE_MEMORY[machine.kind] * Math.trunc(machine.free - atRest);
    const bytes = elementBytes(plan);
    const layer = (18 * shape.hidden + 5 * (shape.inner || 4 * shape.hidden)) * bytes;
    return { tokenBudget: budget, room: new Room(total, shape.layers * shape.hidden * bytes, layer), offload: "as needed" };
  }

  /**
   * What training would choose: budget, largest row, layers that it keeps, whether inputs wait in host memory, memory, and
   * `kept(tokens)`, the layers that any row keeps.
   * asked: training.token_budget; treatment: training.activations; longest: tokens of the run's longest pair in a row;
   * most: of the pairs of a step; no row has more; profiled: whether rows are measured before the first step.
   */
  function chooseRows(shape, given, machine, asked, treatment, longest, most, profiled = true) {
    const plan = { ...MEMORY_PLAN, ...given };
    const { layers } = shape;
    let execution = askedFor(shape, plan, machine, asked === "auto" ? ROW_TOKENS[machine.kind] : asked, treatment);
    let row = Math.max(longest, Math.min(execution.tokenBudget, most));
    const estimate = (tokens, tried) => estimateMemory(shape, plannedRow(plan, tried, tokens, layers));
    if (machine.kind === "cuda" && !profiled) {
      if (execution.offload === "as needed" && !execution.room.holds(row)) execution = { ...execution, offload: "always" };
    } else if (machine.kind === "cuda") {
      const peak = (tokens, tried) => {
        const memory = estimate(tokens, tried);
        return memory.total <= limitOf(machine) ? memory.allocated : null;
      };
      const usable = limitOf(machine) - CONTEXT;
      ({ execution, row } = fit(execution, peak, usable, { layers, longest, most, budgetFixed: asked !== "auto" }));
    }
    const kept = (tokens) => execution.room.kept(tokens, layers);
    return {
      budget: execution.tokenBudget, largest: row, keptLayers: kept(row), offload: execution.offload === "always",
      memory: estimate(row, execution), kept,
    };
  }

  /** Tokens of the longest pair that fits alone in a row, with everything given up that may be. */
  function longestPair(shape, given, machine, treatment, scoredShare) {
    const asked = treating(1, givenOn(machine, treatment === "auto" ? "offload" : treatment));
    const execution = asked.offload === "always" ? inHostMemory(asked) : asked;
    const fits = (tokens) => {
      const row = { ...plannedRow(given, execution, tokens, shape.layers), scoredTokens: tokens * scoredShare };
      return estimateMemory(shape, row).total <= limitOf(machine);
    };
    let [low, high] = [0, LONGEST];
    while (low < high) {
      const middle = Math.floor((low + high + 1) / 2);
      if (fits(middle)) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  const parts = { chooseRows, limitOf, longestPair };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
