"use strict";
/*
 * Layers that mix tokens by a recurrence or a short convolution, as in wishbone.planning.mixers: how many a model has, and
 * their linear layers. `size(name, usual)` reads a size of the config.json; without `usual` one that is missing is noted.
 */
{
  const inNode = typeof require !== "undefined";
  const { floorDivide } = inNode ? require("./whole_numbers.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { DELTA_HOST, LETTERS, MAMBA_HOST, MOST_STATE_BYTES, RECURRENT_TYPES, SCAN_CHUNK } = constants["planning.mixers"];

  const linear = (name, inputs, outputs, count = 1) => ({ name, inputs, outputs, count });

  /** How many of `layers` mix tokens by a recurrence: as `layer_types` says, or by Jamba's period. */
  function recurrentLayers(fields, size, layers) {
    const kinds = fields.layer_types;
    if (Array.isArray(kinds)) return Math.min(kinds.filter((kind) => RECURRENT_TYPES.includes(kind)).length, layers);
    const attending = everyOf(layers, size("attn_layer_period", 0), size("attn_layer_offset", 0));
    return attending ? layers - attending : 0;
  }

  /** What each layer does in a family whose layers do one thing each; empty where the file does not say. */
  function singleKinds(fields) {
    if (Array.isArray(fields.layers_block_type)) return fields.layers_block_type;
    const pattern = fields.hybrid_override_pattern;
    return typeof pattern === "string" ? [...pattern].map((letter) => LETTERS[letter] ?? null) : [];
  }

  /** How many of `layers` are the `offset`-th of a period; none without a period. */
  function everyOf(layers, period, offset) {
    let found = 0;
    for (let layer = 0; period && layer < layers; layer += 1) found += layer % period === offset ? 1 : 0;
    return found;
  }

  /** Elements a token that the kernels of the gated delta rule or of Mamba-2 hold in their backward pass. */
  function scanOf(size) {
    const delta = size("linear_num_value_heads", 0);
    const heads = delta || size("mamba_n_heads", 0);
    if (!heads) return { held: 0, states: 0, host: 0 };
    const names = delta ? ["linear_key_head_dim", "linear_value_head_dim"] : ["mamba_d_state", "mamba_d_head"];
    const [key, value] = names.map((name) => size(name, 0));
    const states = floorDivide(key * value, SCAN_CHUNK);
    return { held: heads * (2 * (key + value + states) + (delta ? SCAN_CHUNK + key : 0)), states: heads * states, host: delta ? DELTA_HOST : MAMBA_HOST };
  }

  /** Bytes that these kernels hold for a row. */
  function scanBytes({ held, states }, tokens) {
    return (4 * held * tokens) / Math.max(1, Math.ceil((4 * states * tokens) / MOST_STATE_BYTES));
  }

  /** The linear layers of a recurrent layer; the last one projects out. `inner`: of a model of Mamba layers alone. */
  function mixerOf(size, hidden, inner) {
    const values = size("linear_num_value_heads", 0);
    if (values) { // gated delta rule
      const value = values * size("linear_value_head_dim");
      const key = size("linear_num_key_heads") * size("linear_key_head_dim");
      const sizes = { in_proj_qkv: 2 * key + value, in_proj_z: value, in_proj_b: values, in_proj_a: values };
      const into = Object.entries(sizes).map(([name, outputs]) => linear(name, hidden, outputs));
      return [...into, linear("out_proj", value, hidden)];
    }
    const heads = size("mamba_n_heads", 0);
    if (heads) { // Mamba-2
      const within = heads * size("mamba_d_head", floorDivide(size("mamba_expand", 2) * hidden, heads));
      const state = size("mamba_n_groups", 1) * size("mamba_d_state", 128);
      return [linear("in_proj", hidden, 2 * within + 2 * state + heads), linear("out_proj", within, hidden)];
    }
    const state = size("mamba_d_state", 0) || size("state_size", 0);
    if (state) { // Mamba
      const within = inner || (size("mamba_expand", 0) || size("expand", 2)) * hidden;
      const rank = Math.ceil(hidden / 16);
      return [
        linear("in_proj", hidden, 2 * within), linear("x_proj", within, rank + 2 * state), linear("dt_proj", rank, within),
        linear("out_proj", within, hidden),
      ];
    }
    return [linear("in_proj", hidden, 3 * hidden), linear("out_proj", hidden, hidden)]; // a short convolution
  }

  const parts = { everyOf, linear, mixerOf, recurrentLayers, scanBytes, scanOf, singleKinds };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
