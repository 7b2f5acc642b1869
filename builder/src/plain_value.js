"use strict";
/*
 * What a number on the command line is, by the YAML 1.2 core schema, as wishbone.config.document reads it: 1e-5 is a
 * number, 007 is text. Python tells 16.0 from 16, so a whole number that is written with a point is `Pointed` here.
 */
{
  const { constants } = typeof require === "undefined" ? globalThis.wishbone : require("../data/constants.js");
  const { FLOAT, INTEGER, WORDS } = constants["config.document"];

  const wholly = (pattern) => new RegExp(`^(?:${pattern})$`);
  const isInteger = wholly(INTEGER);
  const isFloat = wholly(FLOAT);

  /** A number that no field of whole numbers takes, with the text that a message shows of it. */
  class Pointed {
    constructor(number, text) {
      Object.assign(this, { number, text });
    }
  }

  /** A finite float as Python writes it. */
  function floatText(number) {
    const size = Math.abs(number);
    if (size !== 0 && (size < 1e-4 || size >= 1e16)) {
      const [digits, exponent] = number.toExponential().split("e");
      return `${digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
    }
    const text = Object.is(number, -0) ? "-0" : String(number);
    return text.includes(".") ? text : `${text}.0`;
  }

  /** The float that Python writes as inf, -inf or nan. */
  const boundless = (text) => (text === "nan" ? NaN : text === "inf" ? Infinity : -Infinity);

  /** The value of an unquoted scalar: null, true, false, a number, `Pointed`, or the text itself. */
  function plainValue(text) {
    if (Object.hasOwn(WORDS, text)) {
      const value = WORDS[text];
      return typeof value === "string" ? new Pointed(boundless(value), value) : value;
    }
    if (isInteger.test(text)) {
      const number = Number(text);
      return Number.isSafeInteger(number) ? number + 0 : new Pointed(number, text.replace(/^\+/, ""));
    }
    if (!isFloat.test(text)) return text;
    const number = Number(text);
    return new Pointed(number, Number.isFinite(number) ? floatText(number) : number > 0 ? "inf" : "-inf");
  }

  const parts = { Pointed, plainValue };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
