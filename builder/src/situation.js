"use strict";
/*
 * A user's answers, checked against the schema that Python gives (data/situation_schema.js), as in
 * wishbone.planning.situation. Every problem is named at once, by the field that it is about.
 */
{
  const inNode = typeof require !== "undefined";
  const { RequestError } = inNode ? require("./request_error.js") : globalThis.wishbone;
  const { nearest } = inNode ? require("./nearest.js") : globalThis.wishbone;
  const { show, sixDigits } = inNode ? require("./words.js") : globalThis.wishbone;
  const { Pointed } = inNode ? require("./plain_value.js") : globalThis.wishbone;
  const { numberMeant } = inNode ? require("./written_numbers.js") : globalThis.wishbone;
  const { situationSchema } = inNode ? require("../data/situation_schema.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const FIELDS = situationSchema.properties;
  const { NO_GPU } = constants["planning.situation"];

  /** The flag of a field, or what it would be if there were one. */
  const flag = (field) => (Object.hasOwn(FIELDS, field) ? FIELDS[field].flag : `--${field.replaceAll("_", "-")}`);

  function inBounds(value, schema) {
    return !(value < schema.minimum || value > schema.maximum || value <= schema.exclusiveMinimum || value >= schema.exclusiveMaximum);
  }

  const bare = (value) => (value instanceof Pointed ? value.number : value);

  function fits(value, schema) {
    if (schema.anyOf) return schema.anyOf.some((one) => fits(value, one));
    if (schema.enum) return schema.enum.includes(value);
    if (schema.type === "null") return value === null;
    if (schema.type === "boolean") return typeof value === "boolean";
    if (schema.type === "integer") return Number.isInteger(value) && inBounds(value, schema);
    if (schema.type === "number") return Number.isFinite(bare(value)) && inBounds(bare(value), schema);
    if (typeof value !== "string") return false;
    return [...value].length >= (schema.minLength ?? 0) && (!schema.pattern || new RegExp(schema.pattern, "u").test(value));
  }

  function refusal(name, value, schema) {
    const close = schema.enum && typeof value === "string" ? nearest(value, schema.enum) : null;
    const meant = close ? `Did you mean ${close}? ` : "";
    const kinds = (schema.anyOf ?? [schema]).map(({ type }) => type);
    const isNumeric = typeof value === "string" && (kinds.includes("integer") || kinds.includes("number"));
    const number = isNumeric ? numberMeant(value, kinds.includes("integer")) : null;
    return `${flag(name)}: ${show(value)} is not accepted. ${meant}${number ? `Write ${number}. ` : ""}It takes ${schema.accepted}`;
  }

  /** Problems between answers that are sound by themselves: fields and sentence. */
  function conflicts(answers) {
    const { reference, reference_model: other, gpu, gpus, gpu_memory_gib: memory, symptoms } = answers;
    const { prompt_tokens: prompt, completion_tokens: completion, longest_tokens: longest } = answers;
    const none = gpu.toLowerCase() === NO_GPU;
    const twice = [...new Set(symptoms.filter((one, index) => symptoms.indexOf(one) < index))].sort();
    return [
      reference === "given" && other === null && [["reference", "reference_model"],
        "given needs the other model: name it with --reference-model, or leave --reference out"],
      reference === "none" && other !== null && [["reference_model", "reference"],
        `${show(other)} is not used with --reference none; say --reference given or leave it out`],
      longest < prompt + completion && [["longest_tokens", "prompt_tokens", "completion_tokens"],
        `${longest} is shorter than a median pair (${prompt} + ${completion}); give the longest prompt plus completion`],
      none && memory !== null && [["gpu_memory_gib", "gpu"], `${sixDigits(memory)} needs a GPU, but none is named; name it with --gpu`],
      none && gpus > 1 && [["gpus", "gpu"], `${gpus} GPUs, but none is named; name it with --gpu`],
      twice.length > 0 && [["symptoms"], `${twice.join(", ")} given twice; once is enough`],
    ].filter(Boolean);
  }

  /**
   * Check answers by field name: `{situation, problems}`, problems as `[field, sentence]`; the situation is null where
   * there is one.
   */
  function checkSituation(answers) {
    const problems = [];
    const unknown = Object.keys(answers).filter((name) => !Object.hasOwn(FIELDS, name));
    const situation = {};
    const broken = new Set();
    for (const [name, schema] of Object.entries(FIELDS)) {
      const value = Object.hasOwn(answers, name) ? answers[name] : schema.default;
      situation[name] = bare(value);
      const found = [];
      if (value === undefined) {
        found.push([name, `${flag(name)}: required, but missing. ${schema.description}`]);
        situation[name] = "placeholder";
      } else if (schema.type === "array" && Array.isArray(value)) {
        found.push(...value.filter((item) => !fits(item, schema.items)).map((item) => [name, refusal(name, item, schema.items)]));
      } else if (!fits(value, schema)) found.push([name, refusal(name, value, schema)]);
      if (found.length) {
        broken.add(name);
        if (value !== undefined) situation[name] = "default" in schema ? schema.default : "placeholder";
      }
      problems.push(...found);
    }
    for (const name of unknown) {
      const close = nearest(name, Object.keys(FIELDS));
      problems.push([name, `${flag(name)}: no such option${close ? `; did you mean ${flag(close)}?` : ""}`]);
    }
    for (const [fields, text] of conflicts(situation)) {
      if (!fields.some((name) => broken.has(name))) problems.push([fields[0], `${flag(fields[0])}: ${text}`]);
    }
    const told = problems.filter(([, text], index) => problems.findIndex(([, other]) => other === text) === index);
    return { situation: told.length ? null : situation, problems: told };
  }

  /** A situation from answers; throws RequestError with every problem, each beginning with its flag. */
  function readSituation(answers) {
    const { situation, problems } = checkSituation(answers);
    if (problems.length) throw new RequestError(problems.map(([, text]) => text));
    return situation;
  }

  const parts = { FIELDS, NO_GPU, checkSituation, flag, readSituation };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
