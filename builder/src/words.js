"use strict";
/* Values in messages, as wishbone.config.document and Python's repr and format write them. */
{
  const inNode = typeof require !== "undefined";
  const { numberText } = inNode ? require("./emit.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { ESCAPES } = constants.repr;
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
      if (letter in ESCAPES) return ESCAPES[letter];
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

  const parts = { show, showPath, sixDigits };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
