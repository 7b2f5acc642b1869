"use strict";
/*
 * The name that was probably meant, as Python's difflib finds it: twice the letters in matching blocks over the letters
 * of both words (Ratcliff and Obershelp), at least 0.6.
 */
{
  /** Letters in the longest common blocks of a and b, taken from the largest to both sides of it. */
  function matching(a, b) {
    let best = [0, 0, 0];
    let row = [];
    for (let i = 0; i < a.length; i += 1) {
      const next = [];
      for (let j = 0; j < b.length; j += 1) {
        if (a[i] !== b[j]) continue;
        const size = (row[j - 1] ?? 0) + 1;
        next[j] = size;
        if (size > best[2]) best = [i - size + 1, j - size + 1, size];
      }
      row = next;
    }
    const [i, j, size] = best;
    if (!size) return 0;
    return size + matching(a.slice(0, i), b.slice(0, j)) + matching(a.slice(i + size), b.slice(j + size));
  }

  function ratio(a, b) {
    return a.length + b.length ? (2 * matching(a, b)) / (a.length + b.length) : 1;
  }

  /** At most `most` of `choices` that are at least `cutoff` like `word`, the likest first. */
  function closeMatches(word, choices, most = 3, cutoff = 0.6) {
    const scored = choices.map((choice) => [ratio([...choice], [...word]), choice]).filter(([score]) => score >= cutoff);
    scored.sort(([one, left], [other, right]) => other - one || (left < right ? 1 : left > right ? -1 : 0));
    return scored.slice(0, most).map(([, choice]) => choice);
  }

  const flat = (text) => text.toLowerCase().replaceAll("-", "_");

  /** The choice that `name` is most likely a slip of, or null. */
  function nearest(name, choices) {
    const known = new Map(choices.map((choice) => [flat(choice), choice]));
    const word = flat(name);
    const close = closeMatches(word, [...known.keys()], 1);
    const longer = [...known.keys()].filter((choice) => [...word].length > 1 && choice.startsWith(word));
    const found = close.length ? close : longer.length === 1 ? longer : [];
    return found.length ? known.get(found[0]) : null;
  }

  const parts = { closeMatches, nearest };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
