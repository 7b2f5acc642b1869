"use strict";
/* A request that cannot be fulfilled, with all its problems: the value, the rule, the remedy. */
{
  class RequestError extends Error {
    constructor(problems) {
      const list = [problems].flat();
      const numbered = list.map((text, index) => `\n  ${index + 1}. ${text}`).join("");
      super(list.length === 1 ? list[0] : `${list.length} problems:${numbered}`);
      this.problems = list;
    }
  }

  const parts = { RequestError };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
