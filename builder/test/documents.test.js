"use strict";
/* Files that advice becomes, to the byte as Python writes them. */
const assert = require("node:assert/strict");
const { test } = require("node:test");
const { rules } = require("../data/rules.js");
const { evaluate } = require("../src/rules.js");
const { write } = require("../src/targets.js");
const { vectors } = require("./vectors.js");

for (const { name, facts, target, format, lines } of vectors("documents.json").vectors) {
  test(name, () => assert.equal(write(target, format, evaluate(rules, facts)), lines.join("\n")));
}

test("a target without such a file refuses it", () => {
  const facts = vectors("advice-rules.json").vectors[0].facts;
  const outcome = evaluate(rules, { ...facts, reference: "given", reference_model: "other", target: "trl" });
  assert.throws(() => write("trl", "yaml", outcome), /cannot load a separate reference model/);
});
