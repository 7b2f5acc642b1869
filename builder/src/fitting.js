"use strict";
/*
 * Which execution fits a device, from what rows take there; the twin of wishbone.engine.fitting. The page has estimates
 * where training has measurements.
 */
{
  const inNode = typeof require !== "undefined";
  const { EVERYTHING, NOTHING, Room, measuresRoom, smaller } = inNode ? require("./execution.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { LEAST_PROBE, MOST_ROW_TOKENS, PROBE_TOKENS } = constants["engine.fitting"];

  /** Bytes a token that a kept layer takes, from a row of `tokens` or the longest half of it that fits. */
  function bytesOfAKeptLayer(recomputing, peak, layers, tokens) {
    const keeping = { ...recomputing, room: EVERYTHING };
    let row = tokens;
    let kept = peak(row, keeping);
    while (kept === null) {
      row = Math.floor(row / 2);
      if (row < LEAST_PROBE) return Infinity;
      kept = peak(row, keeping);
    }
    return Math.max(kept - (peak(row, recomputing) ?? 0), 0) / (row * Math.max(layers, 1));
  }

  /** The room for rows: what is usable beyond what a row of no tokens takes; null if no short row fits. */
  function measuredRoom(execution, peak, usable, layers, row) {
    const recomputing = measuresRoom(execution) ? { ...execution, room: NOTHING } : execution;
    const longer = Math.min(PROBE_TOKENS, row);
    const shorter = Math.max(Math.floor(longer / 2), 1);
    const [short, long] = [peak(shorter, recomputing), peak(longer, recomputing)];
    if (short === null || long === null) return null;
    const base = (long - short) / Math.max(longer - shorter, 1);
    const layer = measuresRoom(execution) ? bytesOfAKeptLayer(recomputing, peak, layers, longer) : 0;
    return new Room(usable - (long - base * longer), base, layer);
  }

  /** A token budget: as many tokens as can be kept, down to the usual number, which may be recomputed. */
  function longestRows(room, layers, usual, most) {
    let budget = most;
    while (budget > usual && !room.keepsAll(budget, layers)) budget = Math.max(Math.floor(budget / 2), usual);
    return Math.max(Math.min(budget, room.longest()), 128);
  }

  /**
   * The execution whose rows fit, and the tokens of the longest row that has to: `{execution, row}`.
   * peak(tokens, execution): what a row takes, null where it does not fit; usable: bytes to stay below; longest: tokens of
   * the run's longest pair; most: of the pairs of a step; budgetFixed: whether the user chose the token budget.
   */
  function fit(asked, peak, usable, { layers, longest, most, budgetFixed }) {
    let execution = asked;
    let row = Math.max(longest, Math.min(asked.tokenBudget, most));
    const room = measuredRoom(execution, peak, usable, layers, row);
    if (measuresRoom(execution)) execution = { ...execution, room: room ?? NOTHING };
    if (!budgetFixed && room !== null) {
      const ceiling = Math.min(asked.room === NOTHING ? asked.tokenBudget : MOST_ROW_TOKENS, most);
      row = Math.max(longest, longestRows(room, layers, asked.tokenBudget, ceiling));
      execution = { ...execution, tokenBudget: row };
    }
    while (peak(row, execution) === null) {
      const less = smaller(execution, [row], budgetFixed ? row : longest, layers);
      if (less === null) break;
      execution = less;
      row = Math.max(longest, Math.min(row, execution.tokenBudget));
    }
    return { execution, row };
  }

  const parts = { fit };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
