"use strict";
/* From what stands in the form, which is text, to what the planner takes; an empty field is an answer that is left out. */
{
  const { FIELDS, readShape, RequestError, shapeFields } = globalThis.wishbone;

  const kinds = (schema) => (schema.anyOf ?? [schema]).map((one) => one.type);

  function value(text, schema) {
    if (!kinds(schema).some((kind) => kind === "integer" || kind === "number")) return text;
    const number = Number(text);
    return text.trim() === "" || Number.isNaN(number) ? text : number;
  }

  /** Answers by field name, typed as their schema says; what is no number where one belongs stays text and is refused. */
  function toAnswers(form) {
    const given = Object.entries(FIELDS).filter(([name]) => form[name] !== undefined && form[name] !== "");
    return Object.fromEntries(given.map(([name, schema]) => [name, typeof form[name] === "string" ? value(form[name], schema) : form[name]]));
  }

  /** The shape in a pasted config.json and the fields that make it: `{shape, fields, problem}`; null where nothing is pasted. */
  function pastedShape(text) {
    if (text.trim() === "") return { shape: null, problem: null };
    try {
      const config = JSON.parse(text);
      if (typeof config !== "object" || config === null || Array.isArray(config)) {
        return { shape: null, problem: "This is no config.json: a mapping of names to values is one, in braces." };
      }
      return { shape: readShape(config), fields: JSON.stringify(shapeFields(config)), problem: null };
    } catch (error) {
      if (error instanceof RequestError) return { shape: null, problem: error.problems.join("; ") };
      if (error instanceof SyntaxError) return { shape: null, problem: `This is no JSON: ${error.message}` };
      throw error;
    }
  }

  globalThis.wishbone = { ...globalThis.wishbone, pastedShape, toAnswers };
}
