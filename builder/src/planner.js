"use strict";
/*
 * The plan of an advised run: whether it fits, in which rows, how long a step takes. wishbone.planning.run_plan says the same
 * of pairs of median length and one longest pair.
 */
{
  const inNode = typeof require !== "undefined";
  const { findGpu, knownShape } = inNode ? require("./known.js") : globalThis.wishbone;
  const { longestPairTokens, pairTokens } = inNode ? require("./lengths.js") : globalThis.wishbone;
  const { hostSeconds } = inNode ? require("./host_time.js") : globalThis.wishbone;
  const { GIB, MEMORY_PLAN, frozenBytes } = inNode ? require("./memory.js") : globalThis.wishbone;
  const { chooseRows, limitOf, longestPair } = inNode ? require("./room.js") : globalThis.wishbone;
  const { gatheringSeconds, machineOfShards, shardedMemory, uncopied } = inNode ? require("./sharded.js") : globalThis.wishbone;
  const { NO_GPU } = inNode ? require("./situation.js") : globalThis.wishbone;
  const { roundEven } = inNode ? require("./whole_numbers.js") : globalThis.wishbone;
  const { stepSeconds } = inNode ? require("./step_time.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { FULL_ROW } = constants["planning.step_time"];
  const { DTYPES } = constants["planning.run_plan"];

  /** A page does not know how much memory a CPU's machine has, and refuses nothing for lack of it. */
  const cpuMachine = { kind: "cpu", memory: Infinity, free: Infinity };

  const graphics = (gpu, memoryGib = gpu.memory_gib) => ({ gpu, machine: { kind: "cuda", memory: memoryGib * GIB, free: memoryGib * GIB } });

  /** What a run is planned for: shape of the model and of a separate reference, machine, GPU, lengths of pairs. */
  function targetOf({ facts, settings, shape }) {
    const none = facts.gpu.toLowerCase() === NO_GPU;
    const device = none ? { gpu: null, machine: cpuMachine } : graphics(findGpu(facts.gpu), facts.gpu_memory);
    const other = settings["model.reference"];
    return { ...device, shape, facts, reference: other === null ? null : knownShape(other) ?? shape };
  }

  function weightsOf(settings) {
    return settings["model.quantization"] === "none" ? DTYPES[settings["model.dtype"]] : settings["model.quantization"];
  }

  /** What memory depends on, of settings. */
  function memoryPlan(settings, { machine, reference }) {
    const full = settings["adapter.method"] === "full";
    return {
      ...MEMORY_PLAN,
      weights: weightsOf(settings),
      rowTokens: 0,
      method: settings["adapter.method"],
      rank: settings["adapter.rank"] ?? MEMORY_PLAN.rank,
      optimizer: settings["training.optimizer"],
      device: machine.kind,
      reference: reference ? "separate" : full ? "stored" : "none",
      deviceMemory: machine.memory,
    };
  }

  function withReference(memory, reference, plan) {
    if (!reference) return memory;
    const items = { ...memory.items, reference: frozenBytes(reference, plan) };
    const total = Object.values(items).reduce((sum, bytes) => sum + bytes, 0);
    return { items, total, allocated: total - items.runtime };
  }

  /** Passes over the tokens of a step, the reference's spread over the epochs that remember it. */
  function passesOf(settings) {
    return (settings["adapter.method"] === "full" ? 3 : 2) + 1 / Math.max(Math.ceil(settings["training.epochs"]), 1);
  }

  /** Optimizer steps of a run over `pairs` pairs on `devices` devices, or null. */
  function stepsOf(settings, pairs) {
    if (pairs === null) return null;
    const microSteps = Math.ceil(pairs / settings["training.batch_size"]);
    return Math.ceil(settings["training.epochs"] * Math.ceil(microSteps / settings["training.gradient_accumulation"]));
  }

  /** Pairs that are learned from, those held out left off, or null. */
  function learnedPairs(settings, pairs) {
    return pairs === null ? null : Math.max(1, pairs - roundEven(pairs * (settings["data.eval_fraction"] ?? 0)));
  }

  /** The rows that training would choose and their memory, the model divided over the GPUs or whole on each. */
  function chosenRows(settings, { machine, reference, shape, facts }, plan, longest, most, sharded) {
    const { "training.activations": treatment, "training.token_budget": budget } = settings;
    const room = sharded ? machineOfShards(shape, plan, machine, facts.gpus) : machine;
    const rows = chooseRows(shape, sharded ? uncopied(plan) : plan, room, budget, treatment, longest, most, !sharded);
    const memory = withReference(rows.memory, reference, plan);
    return { ...rows, room, memory: sharded ? shardedMemory(shape, plan, memory, facts.gpus) : memory };
  }

  /** The plan of a run with these settings, without a look at others. */
  function planned(settings, target) {
    const { facts, gpu, machine, shape } = target;
    const { "data.max_length": limit, "training.activations": treatment } = settings;
    const plan = memoryPlan(settings, target);
    const pair = pairTokens(facts.prompt_tokens, facts.completion_tokens, limit);
    const longest = longestPairTokens(facts, limit);
    const learned = learnedPairs(settings, facts.pairs);
    const pairsAStep = settings["training.batch_size"] * settings["training.gradient_accumulation"]; // on all GPUs together
    const onDevice = Math.min(Math.ceil(pairsAStep / facts.gpus), learned ?? Infinity);
    const most = Math.max(longest.row, pair.row) + (onDevice - 1) * pair.row;
    const inCodes = shape.experts && settings["model.quantization"] !== "none";
    const choose = (sharded) => chosenRows(settings, target, plan, Math.max(longest.row, pair.row), most, sharded);
    const whole = choose(false);
    const sharded = facts.gpus > 1 && machine.kind === "cuda" && !inCodes && whole.memory.total > limitOf(machine);
    const { kept: keptBy, memory, room, ...rows } = sharded ? choose(true) : whole;
    const rowsAStep = Math.ceil(onDevice / Math.max(1, Math.floor(rows.budget / pair.row)));
    const stepTokens = onDevice * pair.row;
    const rowTokens = stepTokens / rowsAStep;
    const kept = keptBy(rowTokens);
    const work = {
      tokens: stepTokens, scored: onDevice * pair.scored, contexts: onDevice * pair.contexts, passes: passesOf(settings),
      recomputed: 1 - kept / shape.layers, rows: rowsAStep,
    };
    const products = gpu ? stepSeconds(shape, { ...plan, offload: rows.offload }, work, gpu) : null;
    const ofGpu = products === null || !sharded ? products : products + gatheringSeconds(shape, plan, rowsAStep, facts.gpus);
    const seconds = ofGpu === null ? null : Math.max(ofGpu, hostSeconds(shape, plan, rowsAStep, work.recomputed, rows.offload, sharded));
    const scoredShare = pair.scored / pair.row;
    const sequence = gpu ? Math.trunc(longestPair(shape, plan, room, treatment, scoredShare) / (1 + scoredShare / (2 - scoredShare))) : null;
    return {
      settings, weights: plan.weights, machine, limit: limitOf(machine), rows: { ...rows, memory }, memory, kept, sharded, fits: memory.total <= limitOf(machine),
      pair, pairsOnDevice: onDevice, rowsAStep, rowTokens, stepTokens, longest: longest.row,
      longestSequence: sequence !== null && shape.positions ? Math.min(sequence, shape.positions) : sequence,
      steps: stepsOf(settings, learned),
      seconds,
      secondsAtLeast: rowTokens < FULL_ROW,
    };
  }

  const parts = { graphics, planned, targetOf, weightsOf };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
