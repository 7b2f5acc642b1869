"use strict";
/* Tokens of a pair in a row, from given median and longest lengths, as in wishbone.planning.lengths. */
{
  const { roundEven } = typeof require === "undefined" ? globalThis.wishbone : require("./whole_numbers.js");

  /** What a pair of `prompt` and twice `completion` tokens, cut to `most` a sequence, takes: row, scored, contexts. */
  function pairTokens(prompt, completion, most) {
    const sequence = most === null ? prompt + completion : Math.min(prompt + completion, most);
    const start = most === null ? prompt : Math.min(prompt, most);
    return {
      row: 2 * sequence - start,
      scored: 2 * sequence - 2 * start,
      contexts: (2 * sequence ** 2 - start ** 2) / 2,
    };
  }

  /** The pair whose sequences are the longest, divided like the median one. */
  function longestPairTokens({ prompt_tokens: prompt, completion_tokens: completion, longest_tokens: longest }, most) {
    const tokens = roundEven(longest * (completion / (prompt + completion)));
    return pairTokens(Math.max(longest - tokens, 1), Math.max(tokens, 1), most);
  }

  const parts = { longestPairTokens, pairTokens };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
