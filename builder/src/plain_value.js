"use strict";
/*
 * What a number on the command line is, by the YAML 1.2 core schema, as wishbone.config.document reads it: 1e-5 is a
 * number, 007 is text. Python tells 16.0 from 16; a whole number that was written with a point is `Pointed` here.
 */
{
  const INTEGER = /^[-+]?(?:0|[1-9][0-9]{0,3999})$/;
  const FLOAT = /^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$/;
  const WORDS = new Map([
    ...["", "~", "null", "Null", "NULL"].map((word) => [word, null]),
    ...["true", "True", "TRUE"].map((word) => [word, true]),
    ...["false", "False", "FALSE"].map((word) => [word, false]),
  ]);
  const ENDLESS = /^([-+]?)\.(?:inf|Inf|INF)$/;
  const NOT_A_NUMBER = /^\.(?:nan|NaN|NAN)$/;

  /** A number that no field of whole numbers takes, with the text that a message shows of it. */
  class Pointed {
    constructor(number, text) {
      Object.assign(this, { number, text });
    }
  }

  /** As Python writes a float. */
  function floatText(number) {
    if (Number.isNaN(number)) return "nan";
    if (!Number.isFinite(number)) return number > 0 ? "inf" : "-inf";
    const size = Math.abs(number);
    if (size !== 0 && (size < 1e-4 || size >= 1e16)) {
      const [digits, exponent] = number.toExponential().split("e");
      return `${digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
    }
    const text = Object.is(number, -0) ? "-0" : String(number);
    return text.includes(".") ? text : `${text}.0`;
  }

  /** The value of an unquoted scalar: null, true, false, a number, `Pointed`, or the text itself. */
  function plainValue(text) {
    if (WORDS.has(text)) return WORDS.get(text);
    if (INTEGER.test(text)) {
      const number = Number(text);
      return Number.isSafeInteger(number) ? number + 0 : new Pointed(number, text.replace(/^\+/, ""));
    }
    const endless = ENDLESS.exec(text);
    if (endless || NOT_A_NUMBER.test(text) || FLOAT.test(text)) {
      const number = endless ? (endless[1] === "-" ? -Infinity : Infinity) : Number(text.startsWith(".n") || text.startsWith(".N") ? NaN : text);
      return new Pointed(number, floatText(number));
    }
    return text;
  }

  const parts = { Pointed, plainValue };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
