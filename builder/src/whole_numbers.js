"use strict";
/* Whole numbers of doubles as Python has them: floors from the exact remainder, not from the rounded quotient. */
{
  /** The largest whole number not above left / right. */
  function floorDivide(left, right) {
    let remainder = left % right;
    let quotient = (left - remainder) / right;
    if (remainder !== 0 && right < 0 !== remainder < 0) {
      remainder += right;
      quotient -= 1;
    }
    const whole = Math.floor(quotient);
    return quotient - whole > 0.5 ? whole + 1 : whole;
  }

  /** The nearest whole number, halves to the even one. */
  function roundEven(number) {
    const whole = Math.floor(number);
    const rest = number - whole;
    return rest > 0.5 || (rest === 0.5 && whole % 2 !== 0) ? whole + 1 : whole;
  }

  const parts = { floorDivide, roundEven };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
