"use strict";
/*
 * How rows are computed, and what is given up where memory is short; the twin of what the planner uses of
 * wishbone.engine.execution. An execution is `{tokenBudget, room, offload, pieces, headChunk}`.
 */
{
  const inNode = typeof require !== "undefined";
  const { floorDivide } = inNode ? require("./whole_numbers.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { RECOMPUTED_HEAD_CHUNK, SHRINK, SMALL_HEAD_CHUNK } = constants["engine.execution"];

  /** Memory for the activations of a row: `total`, and bytes a token at rest (`base`) and for each kept layer (`layer`). */
  class Room {
    constructor(total, base, layer) {
      Object.assign(this, { total, base, layer });
    }

    /** Whether a row fits with every layer recomputed. */
    holds(tokens) {
      return this.total - tokens * this.base >= 0;
    }

    /** How many of `layers` a row can keep the activations of. */
    kept(tokens, layers) {
      if (this.total === Infinity) return layers;
      const fitting = floorDivide(this.total - tokens * this.base, Math.max(tokens * this.layer, 1e-9));
      return Math.max(0, Math.min(layers, fitting));
    }

    /** Whether a row fits with the activations of all `layers` kept. */
    keepsAll(tokens, layers) {
      return this.holds(tokens) && this.kept(tokens, layers) >= layers;
    }

    /** Tokens of the longest row that fits with every layer recomputed, in whole blocks of 128. */
    longest() {
      return floorDivide(floorDivide(this.total, Math.max(this.base, 1e-9)), 128) * 128;
    }

    /** A tenth less room, or as much less as it takes for a row of `tokens` to keep one layer fewer. */
    smaller(tokens, layers) {
      const kept = this.kept(tokens, layers);
      const room = new Room(SHRINK * this.total, this.base, this.layer);
      if (room.kept(tokens, layers) < kept) return room;
      return new Room(tokens * (this.base + (kept - 0.5) * this.layer), this.base, this.layer);
    }
  }

  const EVERYTHING = new Room(Infinity, 0, 0);
  const NOTHING = new Room(0, 0, 1);

  /** Whether the number of kept layers follows from memory, and is not given for all rows. */
  const measuresRoom = ({ room }) => room !== EVERYTHING && room !== NOTHING;

  /** The execution that treats the activations of every layer of every row alike. */
  function treating(tokenBudget, treatment) {
    if (treatment === "keep") return { tokenBudget, room: EVERYTHING, offload: "never" };
    return { tokenBudget, room: NOTHING, offload: treatment === "offload" ? "always" : "never", headChunk: RECOMPUTED_HEAD_CHUNK };
  }

  /** The execution with as little on the device as possible: inputs in host memory, logits and MLPs in small pieces. */
  const inHostMemory = (execution) => ({ ...execution, offload: "always", pieces: true, headChunk: SMALL_HEAD_CHUNK });

  /**
   * An execution that takes less memory, or null if nothing is left to give up.
   * rows: tokens of the rows that did not fit; least: tokens below which rows cannot be cut.
   */
  function smaller(execution, rows, least, layers) {
    const [longest, shortest] = [Math.max(...rows), Math.min(...rows)];
    const { room } = execution;
    if (measuresRoom(execution) && room.kept(longest, layers) > 0) return { ...execution, room: room.smaller(longest, layers) };
    if (longest > least) return { ...execution, tokenBudget: Math.max(least, Math.floor(longest / 2)) };
    if (execution.offload === "as needed") return inHostMemory(execution);
    if (execution.offload === "always" && !execution.pieces) return inHostMemory(execution);
    if (measuresRoom(execution) && room.kept(shortest, layers) > 0) return { ...execution, room: NOTHING };
    return null;
  }

  const parts = { EVERYTHING, NOTHING, Room, inHostMemory, measuresRoom, smaller, treating };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
