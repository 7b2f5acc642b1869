"use strict";
/* A plan as a link: the answers that differ from the first ones, in the part of the address that no server sees. */
{
  /** The hash for `answers`, strings and lists of strings by name; those equal to `first` are left out. */
  function toHash(answers, first) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(answers)) {
      if (JSON.stringify(value) === JSON.stringify(first[name])) continue;
      query.set(name, Array.isArray(value) ? value.join(" ") : String(value));
    }
    const text = query.toString();
    return text ? `#${text}` : "";
  }

  /** The answers in a hash; `first` says which names there are and which of them are lists. Other names are ignored. */
  function fromHash(hash, first) {
    const query = new URLSearchParams(hash.replace(/^#/, ""));
    const answers = { ...first };
    for (const [name, usual] of Object.entries(first)) {
      const text = query.get(name);
      if (text === null) continue;
      if (Array.isArray(usual)) answers[name] = text.split(" ").filter((word) => word !== "");
      else answers[name] = typeof usual === "boolean" ? text === "true" : text;
    }
    return answers;
  }

  globalThis.wishbone = { ...globalThis.wishbone, toHash, fromHash };
}
