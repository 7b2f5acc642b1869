"use strict";
/* What the form begins with, and what its lists offer. */
{
  const { FIELDS, NO_GPU, constants, gpuNames, gpus } = globalThis.wishbone;
  const { BF16_FROM, FP8_FROM, NOT_SUPPORTED, SOLD } = constants["planning.gpus"];

  /** A default as the form holds it: text, a list or a boolean; empty text where there is none. */
  const inForm = (value) => (Array.isArray(value) || typeof value === "boolean" ? value : String(value ?? ""));

  /** Answers that the form begins with: the defaults of the questions, and an example where there is none. */
  const firstAnswers = {
    ...Object.fromEntries(Object.entries(FIELDS).map(([name, schema]) => [name, inForm(schema.default)])),
    model: "meta-llama/Llama-3.1-8B-Instruct", gpu: "RTX 4090", data: "pairs.jsonl", shape: "",
  };

  const GENERATIONS = [
    ["Compute in FP8", (gpu) => gpu.capability >= FP8_FROM],
    ["Compute in bfloat16", (gpu) => gpu.capability >= BF16_FROM],
    ["Compute in float16", () => true],
  ];

  /** GPUs in groups by what they compute in, then sizes of memory: `[[heading, [[value, text]...]]...]`. */
  function gpuGroups() {
    const left = new Set(gpuNames);
    const groups = GENERATIONS.map(([heading, belongs]) => {
      const names = [...left].filter((name) => belongs(gpus[name]));
      names.forEach((name) => left.delete(name));
      return [heading, names.map((name) => [name, `${name} · ${Math.round(gpus[name].memory_gib)} GiB`])];
    });
    const others = NOT_SUPPORTED.map(([, what]) => what.replace(/^an? /, ""));
    return [
      ...groups,
      ["Only its memory is known", SOLD.map((size) => [`${size}GB`, `A GPU with ${size} GB`])],
      ["Without a GPU", [[NO_GPU, "None: train on the CPU"]]],
      ["Known, not supported yet", [...new Set(others)].map((what) => ["", what])],
    ];
  }

  globalThis.wishbone = { ...globalThis.wishbone, firstAnswers, gpuGroups: gpuGroups() };
}
