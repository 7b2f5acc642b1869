"use strict";
/* From a situation to advice: the model's shape, the GPU, the facts, the rules, as in wishbone.planning.advisor. */
{
  const inNode = typeof require !== "undefined";
  const { RequestError } = inNode ? require("./request_error.js") : globalThis.wishbone;
  const { nearest } = inNode ? require("./nearest.js") : globalThis.wishbone;
  const { show } = inNode ? require("./words.js") : globalThis.wishbone;
  const { factsOf } = inNode ? require("./facts.js") : globalThis.wishbone;
  const { findGpu, knownShape, modelNames } = inNode ? require("./known.js") : globalThis.wishbone;
  const { NO_GPU } = inNode ? require("./situation.js") : globalThis.wishbone;
  const { evaluate } = inNode ? require("./rules.js") : globalThis.wishbone;
  const { rules } = inNode ? require("../data/rules.js") : globalThis.wishbone;

  /** What `answer()` gives, or null with its problems noted behind `start`. */
  function noting(problems, start, answer) {
    try {
      return answer();
    } catch (refused) {
      if (!(refused instanceof RequestError)) throw refused;
      problems.push(...refused.problems.map((problem) => `${start}: ${problem}`));
      return null;
    }
  }

  /** The shape of a situation's model by its name, or that of the known one that is nearest above in size. */
  function shapeOf({ model, parameters_billion: billion }) {
    const found = knownShape(model);
    if (found) return found;
    if (billion !== null) {
      const sizes = modelNames.map(knownShape).sort((one, other) => one.parameters - other.parameters);
      return sizes.find((shape) => shape.parameters >= billion * 1e9) ?? sizes.at(-1);
    }
    const close = nearest(model, modelNames);
    const hint = close ? `did you mean ${close}? If not, say` : "say";
    throw new RequestError(`the shape of ${show(model)} is not known; ${hint} how large it is with --parameters-billion`);
  }

  /**
   * What the rules say of a situation, `{facts, settings, applied}`, and the shape of its model. `given()` may know the
   * shape otherwise. Throws RequestError where the GPU or the shape is not known.
   */
  function advise(situation, given = () => null) {
    const problems = [];
    const none = situation.gpu.toLowerCase() === NO_GPU;
    const gpu = none ? null : noting(problems, "--gpu", () => findGpu(situation.gpu));
    const shape = noting(problems, "--model", () => given(situation.model) ?? shapeOf(situation));
    if (problems.length) throw new RequestError(problems);
    const memory = none ? 0 : situation.gpu_memory_gib ?? gpu.memory_gib;
    return { ...evaluate(rules, factsOf(situation, shape, gpu, memory)), shape };
  }

  const parts = { advise, noting };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
