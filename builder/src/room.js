"use strict";
/*
 * What training would decide about rows, reckoned instead of rehearsed: token budget, layers kept, host memory; the twin
 * of wishbone.planning.room.
 */
{
  const inNode = typeof require !== "undefined";
  const { CONTEXT, MEMORY_PLAN, estimateMemory, numberBytes } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { floorDivide } = inNode ? require("./whole_numbers.js") : globalThis.wishbone;

  const ROW_TOKENS = { cuda: 8192, cpu: 1024 };
  const MOST_ROW_TOKENS = 32768;
  const SHARE_OF_FREE_MEMORY = 0.25;
  const SPARE = 0.04;
  const PROBE_TOKENS = 4096;
  const LEAST_PROBE = 128;
  const LARGEST = 2 ** 24;

  /** Bytes of a device that a run should stay below; `machine` has kind, memory and free. */
  const limitOf = (machine) => (machine.kind === "cuda" ? machine.free - SPARE * machine.memory : machine.free);

  /** What training's measurements would say. */
  class Room {
    constructor(shape, plan, machine, treatment, row) {
      Object.assign(this, { layers: shape.layers, treatment });
      let longer = Math.min(PROBE_TOKENS, row);
      const shorter = Math.max(Math.floor(longer / 2), 1);
      const peak = (rowTokens, keptLayers) =>
        estimateMemory(shape, { ...plan, rowTokens, keptLayers, offload: treatment === "offload" }).allocated;
      const given = treatment === "keep" ? shape.layers : 0;
      const [short, long] = [peak(shorter, given), peak(longer, given)];
      const base = (long - short) / Math.max(longer - shorter, 1);
      const limit = limitOf(machine) - CONTEXT;
      this.total = limit - (long - base * longer);
      this.base = Math.max(base, 1e-9);
      this.layer = 0;
      if (treatment === "auto") {
        while (peak(longer, shape.layers) > limit && longer >= 2 * LEAST_PROBE) longer = Math.floor(longer / 2);
        const kept = peak(longer, shape.layers) - peak(longer, 0);
        this.layer = Math.max(kept, 0) / (longer * Math.max(shape.layers, 1));
      }
    }

    fitting(tokens) {
      return floorDivide(this.total - tokens * this.base, Math.max(tokens * this.layer, 1e-9));
    }

    /** Layers of a row whose activations are kept. */
    kept(tokens) {
      if (this.treatment !== "auto") return this.treatment === "keep" ? this.layers : 0;
      return Math.max(0, Math.min(this.layers, this.fitting(tokens)));
    }

    /** Tokens of a row: as many as can be kept, down to the usual number, which may have to be recomputed. */
    bestBudget(usual, most) {
      let budget = most;
      while (budget > usual && this.fitting(budget) < this.layers) budget = Math.max(Math.floor(budget / 2), usual);
      return Math.max(Math.min(budget, floorDivide(floorDivide(this.total, this.base), 128) * 128), 128);
    }
  }

  /** Take less until the row fits or nothing is left to take: fewer layers kept, then inputs in host memory. */
  function settled(shape, plan, machine, treatment, rowTokens, keptLayers) {
    let kept = keptLayers;
    let offload = treatment === "offload";
    for (;;) {
      const memory = estimateMemory(shape, { ...plan, rowTokens, keptLayers: kept, offload });
      if (memory.total <= limitOf(machine) || treatment !== "auto" || offload) {
        return { budget: rowTokens, largest: rowTokens, keptLayers: kept, offload, memory };
      }
      offload = kept === 0;
      kept = Math.max(kept - 1, 0);
    }
  }

  function onProcessor(shape, plan, machine, budget, treatment, row) {
    let kept = treatment === "keep" ? shape.layers : 0;
    if (treatment === "auto") {
      const number = numberBytes(plan);
      const base = shape.layers * shape.hidden * number;
      const layer = (18 * shape.hidden + 5 * (shape.inner || 4 * shape.hidden)) * number;
      const atRest = estimateMemory(shape, { ...plan, rowTokens: 0, keptLayers: 0 }).total;
      const room = SHARE_OF_FREE_MEMORY * Math.trunc(machine.free - atRest);
      kept = Math.max(0, Math.min(shape.layers, floorDivide(room - row * base, row * layer)));
    }
    const memory = estimateMemory(shape, { ...plan, rowTokens: row, keptLayers: kept });
    return { budget, largest: row, keptLayers: kept, offload: false, memory };
  }

  /**
   * What training would choose: budget, largest row, layers kept, whether inputs wait in host memory, memory.
   * asked: training.token_budget; treatment: training.activations; longest: tokens of the run's longest pair in a row;
   * most: of the pairs of a step, more than which no row has.
   */
  function chooseRows(shape, given, machine, asked, treatment, longest, most) {
    const plan = { ...MEMORY_PLAN, ...given };
    const usual = asked === "auto" ? ROW_TOKENS[machine.kind] : asked;
    let budget = usual;
    let row = Math.max(longest, Math.min(usual, most));
    if (machine.kind === "cpu") return onProcessor(shape, plan, machine, usual, treatment, row);
    const room = new Room(shape, plan, machine, treatment, row);
    if (asked === "auto") {
      const ceiling = Math.min(["auto", "keep"].includes(treatment) ? MOST_ROW_TOKENS : usual, most);
      budget = Math.max(longest, room.bestBudget(usual, ceiling));
      row = budget;
    }
    for (;;) {
      const found = settled(shape, plan, machine, treatment, row, room.kept(row));
      if (found.memory.total <= limitOf(machine) || row <= longest || asked !== "auto") {
        return { ...found, budget: asked === "auto" ? Math.min(budget, row) : budget };
      }
      row = Math.max(longest, Math.floor(row / 2));
      budget = row;
    }
  }

  /** Tokens of the longest pair that fits alone in a row, with all that may be done to save memory done. */
  function longestPair(shape, given, machine, treatment, scoredShare) {
    const keptLayers = treatment === "keep" ? null : 0;
    const offload = ["auto", "offload"].includes(treatment) && machine.kind === "cuda";
    const fits = (tokens) =>
      estimateMemory(shape, { ...given, rowTokens: tokens, scoredTokens: tokens * scoredShare, keptLayers, offload }).total <= limitOf(machine);
    let [low, high] = [0, LARGEST];
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
