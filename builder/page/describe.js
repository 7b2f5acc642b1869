"use strict";
/* A plan in words: what the page shows of it. Numbers come from the planner; here they get their names. */
{
  const {
    AS_ASKED, GIB, RequestError, advise, alternatives, constants, knownShape, modelNames, nearest, planned, sources, targetOf,
    valueText, weightsOf, write,
  } = globalThis.wishbone;
  const { COMMANDS } = constants["cli.init"];
  const { SPARE } = constants["engine.fitting"];

  /** Items of memory in the order of the planner: class of the chart, name, and what each is. */
  const ITEMS = {
    weights: ["weights", "Weights", "linear layers and norms"],
    "embeddings and head": ["embeddings", "Embeddings, head", "never quantized"],
    adapter: ["adapter", "Adapter", "trained beside the weights"],
    gradients: ["gradients", "Gradients", "of what is trained"],
    optimizer: ["optimizer", "Optimizer", "its moments"],
    activations: ["activations", "Activations", "kept for the backward pass"],
    "head chunk": ["head", "Head chunk", "logits of some tokens at a time"],
    reference: ["reference", "Reference", "a second model, if there is one"],
    workspace: ["workspace", "Workspace", "scratch memory of products"],
    runtime: ["runtime", "Runtime", "driver, libraries, process"],
  };
  const FORMS = { f32: "float32", f16: "float16", bf16: "bfloat16", fp8: "FP8", int8: "int8", nf4: "NF4" };
  const FILES = { yaml: "run.yaml", json: "run.json", python: "train.py" };
  const OF_SCRIPTS = { "script.pairs_a_step": "pairs a step", "script.gradient_checkpointing": "gradient checkpointing" };

  const whole = (number) => Math.round(number).toLocaleString("en");
  const gib = (bytes) => `${(bytes / GIB).toFixed(1)} GiB`;

  /** Seconds in the unit that one would say them in. */
  function duration(seconds) {
    if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return seconds < 172_800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86_400).toFixed(1)} days`;
  }

  const items = (memory) => Object.entries(memory.items).map(([name, bytes]) => {
    const [key, title, meaning] = ITEMS[name];
    return { key, name: title, meaning, bytes };
  });

  const bar = (name, memory) => ({ name, items: items(memory), total: memory.total });

  /** How the rows of a plan are run, in a sentence. */
  function treatment({ rows, sharded }, layers) {
    return `${sharded ? "On each GPU: the weights are divided over all of them (FSDP2). " : ""}${computedAgain(rows, layers)}`;
  }

  function computedAgain(rows, layers) {
    if (rows.offload) return "Layers are computed again in the backward pass, and their inputs wait in host memory.";
    if (rows.keptLayers >= layers) return "All activations are kept: nothing is computed twice.";
    if (rows.keptLayers === 0) return "Every layer is computed again in the backward pass.";
    return `Activations of ${rows.keptLayers} of ${layers} layers are kept, the others are computed again.`;
  }

  function offered({ changes, gpu, memory }) {
    const what = [...changes.map(([name, value]) => `${name} ${valueText(value)}`), ...(gpu ? [`the GPU ${gpu}`] : [])];
    return `${what.join(" and ")} (${gib(memory)})`;
  }

  function verdict(plan, least, card, layers, others) {
    const needs = plan.memory.total;
    if (card === null) {
      return { state: "fits", lead: `${gib(least.total)} to ${gib(needs)} of main memory.`, then: "The least computes every layer again, the most keeps all activations; training takes what is free." };
    }
    const size = `${gib(needs)} of ${card.toFixed(1)} GiB`;
    if (plan.fits) return { state: "fits", lead: `It fits: ${size}.`, then: treatment(plan, layers) };
    const instead = others.length ? `What fits: ${others.map(offered).join("; or ")}.` : "No known GPU and no setting makes it fit: take a smaller model, or shorter pairs.";
    if (needs <= card * GIB) return { state: "tight", lead: `It hardly fits: ${size}.`, then: `Training leaves ${100 * SPARE} % of the card free. ${instead}` };
    return { state: "over", lead: `It does not fit: ${size}.`, then: instead };
  }

  function time(plan, facts) {
    if (plan.seconds === null) return [{ name: "Time a step", value: "not known", note: "nothing like it was measured" }];
    const atLeast = plan.secondsAtLeast ? "at least " : "";
    const shown = [
      { name: "Time a step", value: `${atLeast}${duration(plan.seconds)}`, note: facts.gpu.includes("H200") ? "from rates measured on one" : "an H200's rates, scaled by what is published" },
      { name: "Pairs a second", value: `${atLeast ? "up to " : ""}${((plan.pairsOnDevice * facts.gpus) / plan.seconds).toPrecision(2)}`, note: facts.gpus > 1 ? `on ${facts.gpus} GPUs` : null },
    ];
    if (plan.steps === null) return shown;
    return [...shown, { name: "The run", value: `${atLeast}${duration(plan.seconds * plan.steps)}`, note: `${whole(plan.steps)} steps` }];
  }

  function figures(plan, { facts, settings }) {
    const on = facts.gpus > 1 ? ` × ${facts.gpus} GPUs` : "";
    const shown = [
      { name: "Pairs a step", value: whole(plan.pairsOnDevice * facts.gpus), note: `${settings["training.batch_size"]} × ${settings["training.gradient_accumulation"]}${on}` },
      { name: "Tokens a step", value: whole(plan.stepTokens * facts.gpus), note: `${whole(plan.pair.row)} a pair` },
      { name: "Rows a step", value: whole(plan.rowsAStep), note: `of ${whole(plan.rowTokens)} tokens, at most ${whole(plan.rows.budget)}` },
      ...time(plan, facts),
    ];
    if (plan.longestSequence === null) return shown;
    return [...shown, { name: "Longest sequence that fits", value: plan.longestSequence > 1 ? `${whole(plan.longestSequence)} tokens` : "none", note: "a prompt with one completion" }];
  }

  function shownName(setting, target) {
    if (!setting.startsWith("script.")) return setting;
    return setting !== "script.gradient_checkpointing" || target !== "wishbone" ? OF_SCRIPTS[setting] : undefined;
  }

  /** Warnings, and the rules that decided a setting that the page shows. */
  function advice({ facts, settings, applied }) {
    const decided = new Map(applied.flatMap((rule) => Object.keys(rule.set).map((name) => [name, rule])));
    return applied.map((rule) => {
      const own = Object.keys(rule.set).filter((name) => decided.get(name) === rule && shownName(name, facts.target));
      const set = own.map((name) => [shownName(name, facts.target), valueText(settings[name])]);
      return { kind: rule.kind, reason: rule.reason, set, source: sources[rule.source] ?? { title: rule.source, address: "" } };
    }).filter((one) => one.kind === "warning" || (one.set.length > 0 && one.reason !== AS_ASKED));
  }

  /** Plans with everything saved that can be: of this form of the weights first, then of others that the card computes. */
  function leastPlans({ facts, settings }, target) {
    const least = { ...settings, "training.activations": facts.has_gpu ? "offload" : "recompute", "training.token_budget": 2 };
    const own = [FORMS[weightsOf(settings)], planned(least, target)];
    if (!facts.has_gpu || facts.method === "full") return [own];
    const others = [["none", facts.bf16 ? "bf16" : "f16"], ...(facts.fp8 ? [["fp8", "fp8"]] : []), ...(facts.int8 ? [["int8", "int8"]] : []), ["nf4", "nf4"]]
      .filter(([, form]) => form !== weightsOf(settings))
      .map(([quantization, form]) => [FORMS[form], planned({ ...least, "model.quantization": quantization, "model.dtype": facts.bf16 ? "bfloat16" : "float16" }, target)]);
    return [own, ...others];
  }

  function fileOf(outcome, format) {
    const { target, output } = outcome.facts;
    const name = output ?? FILES[format];
    const command = format === "python" ? "python" : COMMANDS[target];
    try {
      return { name, text: write(target, format, outcome), command: command ? `${command} ${name}` : "" };
    } catch (refused) {
      if (!(refused instanceof RequestError)) throw refused;
      return { problem: refused.problems.join(" ") };
    }
  }

  /** A question for the size of a model that nothing is known of, or null. */
  function sizeAsked({ model, parameters_billion: billion }, pasted) {
    if (pasted !== null || billion !== null || knownShape(model) !== null) return null;
    const near = nearest(model, modelNames);
    const other = near ? `Did you mean ${near}? If not: how` : "How";
    return `${other} large is ${model.trim() || "the model"}? Give its parameters in billions, such as 8 for a model with 8B in its name, or paste its config.json, both under “Another model”.`;
  }

  /** What the page shows of a situation, and `file(format)`: name, text and command, or the problem with it. */
  function describePlan(situation, pasted) {
    const outcome = advise(situation, () => pasted);
    const { facts, settings, shape } = outcome;
    const target = targetOf(outcome);
    const plan = planned(settings, target);
    const card = facts.has_gpu ? facts.gpu_memory : null;
    const [own, ...others] = leastPlans(outcome, target);
    const instead = plan.fits ? [] : alternatives(settings, target);
    return {
      plan,
      verdict: verdict(plan, own[1].memory, card, shape.layers, instead),
      items: items(plan.memory),
      total: plan.memory.total,
      card,
      room: card === null ? null : plan.limit / GIB,
      bars: [
        bar(`${card === null ? "All activations kept" : "This plan"}: ${FORMS[plan.weights]}`, plan.memory),
        bar(`At least: ${own[0]}`, own[1].memory),
        ...others.map(([name, least]) => bar(`At least: ${name}`, least.memory)),
      ],
      figures: figures(plan, outcome),
      advice: advice(outcome),
      file: (format) => fileOf(outcome, format),
    };
  }

  globalThis.wishbone = { ...globalThis.wishbone, describePlan, sizeAsked };
}
