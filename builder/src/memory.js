"use strict";
/*
 * Memory of a training step, by item, as wishbone.planning.memory defines and explains it. Only + - * / floor min max on
 * doubles, in the same order as there, so that the bytes are the same.
 */
{
  const inNode = typeof require !== "undefined";
  const { floorDivide } = inNode ? require("./whole_numbers.js") : globalThis.wishbone;
  const { scanBytes } = inNode ? require("./mixers.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { SMALL_TILE } = constants["engine.execution"];
  const {
    CONTEXT, COPYING, EIGHT_BITS, GIB, HOLES, LIBRARY_WORKSPACE, MIB, MemoryPlan, NF4_BYTES, PROCESS, STATE_ELEMENTS,
  } = constants["planning.memory"];
  const { LINEAR_EXPERTS } = constants["planning.model_shape"];

  const sum = (numbers) => numbers.reduce((left, right) => left + right, 0);
  const isFused = (plan) => plan.device === "cuda" && plan.method === "lora";

  /** Bytes of an element in the arithmetic. */
  function elementBytes(plan) {
    return plan.weights === "f32" || (plan.device === "cpu" && [...EIGHT_BITS, "nf4"].includes(plan.weights)) ? 4 : 2;
  }

  function linearBytes(shape, plan) {
    if (plan.weights === "nf4") return NF4_BYTES * shape.linearParameters;
    if (EIGHT_BITS.includes(plan.weights)) {
      return shape.linearParameters + 4 * sum(shape.linears.map((one) => one.count * one.outputs));
    }
    return elementBytes(plan) * shape.linearParameters;
  }

  /** Bytes of a whole model in the plan's form of weights. */
  function frozenBytes(shape, plan) {
    return linearBytes(shape, plan) + expertBytes(shape, plan) + elementBytes(plan) * (shape.vectorParameters + shape.embeddingParameters);
  }

  /** Bytes of all experts and their routers. */
  function expertBytes(shape, plan) {
    if (![...EIGHT_BITS, "nf4"].includes(plan.weights)) return elementBytes(plan) * shape.expertParameters;
    const count = shape.expertLayers * shape.experts;
    const stacks = shape.matrices * count * shape.hidden * shape.expertInner;
    const router = elementBytes(plan) * count * shape.hidden;
    if (plan.weights === "nf4") return NF4_BYTES * stacks + router;
    return stacks + 4 * count * ((shape.matrices - 1) * shape.expertInner + shape.hidden) + router;
  }

  function adapted(shape, plan) {
    return shape.linears.filter((one) => plan.targets === "all-linear" || plan.targets.includes(one.name));
  }

  /** Inputs + outputs of the matrices of one expert that have an adapter; all-linear counts gate and up twice. */
  function adaptedOfExpert(shape, plan) {
    const whole = plan.targets === "all-linear" && LINEAR_EXPERTS.includes(shape.modelType);
    const named = (name) => plan.targets !== "all-linear" && plan.targets.includes(name);
    const up = (whole ? 2 : named("gate_up_proj") ? 1 : 0) * (shape.hidden + 2 * shape.expertInner);
    return up + (whole || named("down_proj") ? shape.expertInner + shape.hidden : 0);
  }

  /** How many parameters are trained. */
  function trainedParameters(shape, plan) {
    if (plan.method === "full") return shape.parameters;
    const linears = sum(adapted(shape, plan).map((one) => one.count * (one.inputs + one.outputs)));
    return plan.rank * (linears + shape.expertLayers * shape.experts * adaptedOfExpert(shape, plan));
  }

  /** Elements of a token within an MLP, or within all experts that it goes to. */
  const innerElements = (shape) => shape.inner || shape.expertsUsed * shape.expertInner + shape.sharedInner;

  function layerBytes(shape, plan) {
    const b = elementBytes(plan);
    const norms = isFused(plan)
      ? shape.norms * shape.hidden * 2 * b
      : shape.norms * shape.hidden * (4 + b + (plan.method === "full" ? b : 0));
    let attention = 2 * shape.query + 2 * shape.key;
    if (plan.device === "cpu") attention += shape.query + (4 / 3) * shape.key;
    if (shape.headNorms) attention += shape.query + shape.key;
    if (shape.recurrent) attention = (shape.attending * attention + shape.recurrent * shape.mixed) / shape.layers;
    let mlp = (isFused(plan) ? 2 : 4) * innerElements(shape);
    if (shape.mlpAlone) mlp *= shape.mlpAlone / shape.layers;
    const adapters = plan.method === "lora" ? sum(adapted(shape, plan).map((one) => one.count)) : 0;
    const low = (plan.rank * adapters) / shape.layers;
    return norms + b * (attention + mlp + low) + 4 * (shape.heads + shape.norms);
  }

  /** Bytes a token of all that a row keeps from its forward to its backward pass. */
  function keptBytes(shape, plan) {
    const kept = plan.keptLayers === null ? shape.layers : plan.keptLayers;
    const inputs = plan.offload ? Math.min(shape.layers - kept, 3) : shape.layers - kept;
    return kept * layerBytes(shape, plan) + inputs * elementBytes(plan) * shape.hidden;
  }

  /** Bytes of the layer that is recomputed where none is kept, and of what comes and goes in a layer. */
  function backwardBytes(shape, plan) {
    const b = elementBytes(plan);
    const tokens = plan.rowTokens;
    const inner = innerElements(shape);
    let passing = (isFused(plan) ? 1 : 3) * b * inner + (EIGHT_BITS.includes(plan.weights) ? inner : 0);
    passing += b * shape.expertsUsed * shape.hidden;
    let layer = plan.keptLayers === 0 ? layerBytes(shape, plan) - b * shape.hidden : 0;
    const tiles = Math.floor(tokens / SMALL_TILE + 1 / 2);
    if (!(plan.pieces && isFused(plan) && shape.inner) || tiles < 2) {
      const gone = shape.mlpAlone ? 0 : tokens * 2 * b * inner;
      const scan = isFused(plan) ? scanBytes(shape.scan, tokens) - gone : 0;
      return [tokens * layer, tokens * 2 * b * shape.hidden + Math.max(tokens * passing, scan)];
    }
    layer -= 2 * b * inner;
    const tile = 2 * b * shape.hidden + 3 * b * inner + passing;
    return [tokens * layer, tokens * 2 * b * shape.hidden + (tokens / tiles) * tile];
  }

  function logitsBytes(shape, plan, scored) {
    if (plan.device === "cpu") {
      const width = 4 * shape.vocabulary;
      return 2 * Math.min(Math.max(16, floorDivide(64 * MIB, width)), scored) * width;
    }
    const width = 4 * 128 * Math.ceil(shape.vocabulary / 128);
    const most = Math.min(Math.max(floorDivide(plan.deviceMemory, 128), 64 * MIB), GIB);
    const room = plan.headChunk === null ? most : Math.min(most, plan.headChunk);
    return Math.min(Math.max(128, floorDivide(floorDivide(room, width), 128) * 128), scored) * width;
  }

  function workspaceBytes(shape, plan) {
    const stack = 2 * shape.experts * shape.expertInner * shape.hidden;
    const largest = Math.max(stack, ...shape.linears.map((one) => one.inputs * one.outputs));
    const scratch = [...EIGHT_BITS, "nf4"].includes(plan.weights) ? elementBytes(plan) * largest : 0;
    return scratch + (plan.device === "cuda" ? LIBRARY_WORKSPACE : 0);
  }

  /**
   * The peak of a training step: `{items: {name: bytes}, total, allocated}`, items in a fixed order, all but the
   * runtime allocated by PyTorch.
   * plan: `weights` and `rowTokens`, and what differs from the defaults; names as MemoryPlan in Python, in camel case.
   */
  function estimateMemory(shape, given) {
    const plan = { ...MemoryPlan, ...given };
    const b = elementBytes(plan);
    const tokens = plan.rowTokens;
    const scored = plan.scoredTokens === null ? tokens : plan.scoredTokens;
    const frozen = linearBytes(shape, plan) + expertBytes(shape, plan) + b * shape.vectorParameters;
    const embeddings = b * shape.embeddingParameters;
    const trained = trainedParameters(shape, plan);
    const trainedBytes = plan.method === "lora" ? plan.adapterBytes : b;
    const activations = tokens * keptBytes(shape, plan);
    let head = b * 2 * scored * shape.hidden + logitsBytes(shape, plan, scored);
    if (!plan.offload) head += b * 3 * tokens * shape.hidden;
    if (plan.method === "full") head += 4 * shape.vocabulary * shape.hidden;
    const [layer, passing] = backwardBytes(shape, plan);
    const copy = COPYING.includes(plan.optimizer) ? trained * trainedBytes : 0;
    const overHead = Math.max(layer + passing - head, 0);
    const recomputed = Math.min(layer, overHead);
    const beyond = Math.max(overHead - recomputed, copy - activations - recomputed - head);
    const holes = plan.device === "cpu" ? HOLES * (activations + recomputed + head + beyond) : 0;
    const items = {
      weights: frozen,
      "embeddings and head": embeddings,
      adapter: plan.method === "lora" ? trained * trainedBytes : 0,
      gradients: trained * trainedBytes,
      optimizer: trained * trainedBytes * STATE_ELEMENTS[plan.optimizer],
      activations: activations + recomputed,
      "head chunk": head,
      reference: plan.reference === "separate" ? frozen + embeddings : 0,
      workspace: workspaceBytes(shape, plan) + beyond + holes,
      runtime: plan.device === "cuda" ? CONTEXT : PROCESS,
    };
    const total = sum(Object.values(items));
    return { items, total, allocated: total - items.runtime };
  }

  const parts = {
    CONTEXT, GIB, MEMORY_PLAN: MemoryPlan, adapted, adaptedOfExpert, elementBytes, estimateMemory, expertBytes, frozenBytes, isFused, layerBytes,
    linearBytes, trainedParameters,
  };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
