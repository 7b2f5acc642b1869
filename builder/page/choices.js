"use strict";
/* What the form begins with, and what its lists offer. */
{
  const { gpuNames, gpus } = globalThis.wishbone;

  /** Answers that the form begins with, as text. */
  const firstAnswers = {
    model: "meta-llama/Llama-3.1-8B-Instruct", parameters_billion: "", shape: "", gpu: "RTX 4090", gpu_memory_gib: "", gpus: "1",
    data: "pairs.jsonl", prompt_tokens: "128", completion_tokens: "256", longest_tokens: "1024", pairs: "", noisy_labels: false,
    method: "lora", reference: "none", reference_model: "", learning_rate: "", symptoms: [], target: "wishbone", output: "",
  };

  const GENERATIONS = [
    ["Compute in FP8", (gpu) => gpu.capability >= 8.9], ["Compute in bfloat16", (gpu) => gpu.capability >= 8], ["Compute in float16", () => true],
  ];

  /** GPUs in groups by what they compute in: `[[heading, [[value, text]...]]...]`. */
  function gpuGroups() {
    const left = new Set(gpuNames);
    const groups = GENERATIONS.map(([heading, belongs]) => {
      const names = [...left].filter((name) => belongs(gpus[name]));
      names.forEach((name) => left.delete(name));
      return [heading, names.map((name) => [name, `${name} · ${Math.round(gpus[name].memory_gib)} GiB`])];
    });
    return [...groups, ["Without a GPU", [["none", "None: train on the processor"]]]];
  }

  globalThis.wishbone = { ...globalThis.wishbone, firstAnswers, gpuGroups: gpuGroups() };
}
