"use strict";
/* Numbers as people write them, in the form that is accepted here, as in wishbone.config.written_numbers. */
{
  const inNode = typeof require !== "undefined";
  const { sixDigits } = inNode ? require("./words.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { FLOAT } = constants["config.document"];
  const { COUNTED, DIGITS, FRACTION, GROUPED, MEASURED, OF_TEN, PERCENT, THOUSANDS } = constants["config.written_numbers"];

  const wholly = (pattern, flags = "") => new RegExp(`^(?:${pattern})$`, flags);
  const [isFloat, isDigits, isFraction, isGrouped, isOfTen, isPercent, isThousands] = [
    FLOAT, DIGITS, FRACTION, GROUPED, OF_TEN, PERCENT, THOUSANDS].map((pattern) => wholly(pattern));
  const [isCounted, isMeasured] = [COUNTED, MEASURED].map((pattern) => wholly(pattern, "i"));

  const isNumber = (text, whole) => isDigits.test(text) || (!whole && isFloat.test(text));

  /** The number that a text means as it is written here, or null where it means none. */
  function numberMeant(text, whole) {
    const forms = [isThousands, isPercent, isFraction, isOfTen, whole ? isCounted : isMeasured];
    const [thousands, percent, fraction, ofTen, unit] = forms.map((form) => form.exec(text));
    if (whole && thousands) {
      const power = "kK".includes(thousands[2]) ? 1 : 2;
      return [1000, 1024].map((step) => String(Number(thousands[1]) * step ** power)).join(" or ");
    }
    if (whole && isGrouped.test(text)) return text.replace(/[^0-9]/g, "");
    if (!whole && percent) return sixDigits(Number(percent[1].replace(",", ".")) / 100);
    if (!whole && fraction) return sixDigits(Number(fraction[1]) / Number(fraction[2]));
    if (!whole && ofTen) return `${ofTen[1] ?? 1}e${ofTen[2]}`.replace("\u2212", "-");
    if (unit) {
      const number = unit[1].trim();
      return isNumber(number, whole) ? number : numberMeant(number, whole);
    }
    const joined = text.replace(/(?<=[0-9])[_' ](?=[0-9])/g, "");
    return [joined, text.replace(",", "."), text.replaceAll("\u2212", "-")].find((other) => other !== text && isNumber(other, whole)) ?? null;
  }

  const parts = { numberMeant };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
