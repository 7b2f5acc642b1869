"use strict";
/* Values and what a schema accepts, in the words of messages; the twin of `show` and `accepted` of wishbone.config. */
{
  const { numberText } = typeof require === "undefined" ? globalThis.wishbone : require("./emit.js");

  const SHORT = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  const HIDDEN = /[\p{C}\p{Z}]/u;

  function escaped(letter) {
    const code = letter.codePointAt(0);
    const digits = code <= 0xff ? 2 : code <= 0xffff ? 4 : 8;
    return `\\${{ 2: "x", 4: "u", 8: "U" }[digits]}${code.toString(16).padStart(digits, "0")}`;
  }

  /** Text in quotes on one line and whole, as Python's repr has it. */
  function showPath(text) {
    const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
    const letters = [...text].map((letter) => {
      if (letter === quote) return `\\${quote}`;
      if (letter in SHORT) return SHORT[letter];
      return letter !== " " && HIDDEN.test(letter) ? escaped(letter) : letter;
    });
    return `${quote}${letters.join("")}${quote}`;
  }

  /** A value for a message: on one line, at most 80 characters. What is neither text nor number has a `text`. */
  function show(value) {
    if (value === null || typeof value === "boolean") return String(value);
    const text = typeof value === "string" ? showPath(value) : typeof value === "number" ? numberText(value) : value.text;
    const letters = [...text];
    return letters.length <= 80 ? text : `${letters.slice(0, 76).join("")} ...`;
  }

  /** A number with six digits, as Python's format g has it. */
  function sixDigits(number) {
    const [digits, exponent] = number.toExponential(5).split("e");
    const power = Number(exponent);
    if (power >= -4 && power < 6) return String(Number(number.toPrecision(6)));
    return `${Number(digits)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }

  function bounds(schema) {
    if ("minimum" in schema && "maximum" in schema) return ` from ${schema.minimum} to ${schema.maximum}`;
    const words = { exclusiveMinimum: "above", minimum: "of at least", exclusiveMaximum: "below", maximum: "of at most" };
    const given = Object.keys(words).filter((key) => key in schema);
    return given.map((key) => ` ${words[key]} ${schema[key]}`).join(" and");
  }

  /** What a JSON Schema accepts, in words. */
  function accepted(schema) {
    if (schema.anyOf) return schema.anyOf.map(accepted).join(", or ");
    if (schema.enum) return `one of ${schema.enum.join(", ")}`;
    if (schema.type === "array") return `a list, each item ${accepted(schema.items)}`;
    if (schema.type === "string") return "pattern" in schema ? "one line of text" : "text";
    if (schema.type === "boolean") return "true or false";
    if (schema.type === "null") return "null";
    return (schema.type === "integer" ? "a whole number" : "a number") + bounds(schema);
  }

  const parts = { accepted, show, showPath, sixDigits };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
