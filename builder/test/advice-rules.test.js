"use strict";
/* The rules over the vectors that were worked out by hand: settings and warnings, complete. */
const assert = require("node:assert/strict");
const { test } = require("node:test");
const { rules } = require("../data/rules.js");
const { evaluate } = require("../src/rules.js");
const { vectors } = require("./vectors.js");

const all = vectors("advice-rules.json").vectors;
const byName = Object.fromEntries(all.map((vector) => [vector.name, vector]));

function whole(vector) {
  if (vector.name === all[0].name) return vector;
  const like = whole(byName[vector.like ?? all[0].name]);
  const settings = { ...like.settings, ...vector.settings };
  for (const name of vector.absent ?? []) delete settings[name];
  return { facts: { ...like.facts, ...vector.facts }, settings, warnings: vector.warnings ?? like.warnings };
}

test("there are at least sixty situations", () => assert.ok(all.length >= 60, String(all.length)));

for (const vector of all) {
  test(vector.name, () => {
    const { facts, settings, warnings } = whole(vector);
    const outcome = evaluate(rules, facts);
    assert.deepEqual(outcome.settings, settings);
    assert.deepEqual(outcome.applied.filter((rule) => rule.kind === "warning").map((rule) => rule.id), warnings);
    assert.deepEqual(Object.keys(outcome.settings), rules.settings.filter((name) => name in settings));
  });
}
