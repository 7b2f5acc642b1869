"use strict";
/*
 * Memory of a step where FSDP2 divides the model over several GPUs; the twin of wishbone.planning.sharded.
 */
{
  const inNode = typeof require !== "undefined";
  const { elementBytes, estimateMemory, expertBytes, frozenBytes, linearBytes, trainedParameters } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { COPYING, NF4_BYTES } = constants["planning.memory"];
  const { MASTER_BYTES, NVLINK_RATE, WITHOUT_COPY } = constants["planning.sharded"];

  /** Bytes that are whole on each GPU while a row runs: two layers, with gradients where all is trained, and embeddings. */
  function gatheredBytes(shape, plan) {
    const layers = 2 * (linearBytes(shape, plan) + expertBytes(shape, plan)) / shape.layers;
    return layers + (plan.method === "full" ? layers : 0) + elementBytes(plan) * shape.embeddingParameters;
  }

  /** Seconds that GPUs wait for weights in a step of so many rows. */
  const gatheringSeconds = (shape, plan, rows, devices) => rows * (2 * (devices - 1) / devices * frozenBytes(shape, plan)) / NVLINK_RATE;

  /** The plan as if the optimizer held no copy; `shardedMemory` adds the part of it that a GPU holds. */
  const uncopied = (plan) => ({ ...plan, optimizer: WITHOUT_COPY[plan.optimizer] ?? plan.optimizer });

  /** What a GPU holds of a row whose model is divided; memory: of the row with `uncopied(plan)` and the model whole. */
  function shardedMemory(shape, plan, memory, devices) {
    const items = { ...memory.items };
    const masters = plan.method === "full" ? MASTER_BYTES / elementBytes(plan) : 1;
    for (const name of ["weights", "embeddings and head", "gradients", "optimizer"]) items[name] *= masters / devices;
    for (const name of ["adapter", "reference"]) items[name] /= devices;
    if (plan.weights === "nf4") items.weights += (1 - 1 / devices) * (NF4_BYTES - 1 / 2) * shape.linearParameters;
    const copy = COPYING.includes(plan.optimizer) ? MASTER_BYTES * trainedParameters(shape, plan) / devices : 0;
    items.workspace += gatheredBytes(shape, plan) + copy;
    const total = Object.values(items).reduce((sum, bytes) => sum + bytes, 0);
    return { items, total, allocated: total - items.runtime };
  }

  /** A machine on which the whole model leaves the room that its shards leave on `machine`. */
  function machineOfShards(shape, plan, machine, devices) {
    const whole = estimateMemory(shape, { ...uncopied(plan), rowTokens: 0, keptLayers: 0 });
    return { ...machine, free: machine.free + whole.total - shardedMemory(shape, plan, whole, devices).total };
  }

  const parts = { gatheringSeconds, machineOfShards, shardedMemory, uncopied };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
