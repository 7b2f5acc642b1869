"use strict";
/* Whole situations: the facts that rules read, memory in GiB among them, and what is advised. */
const assert = require("node:assert/strict");
const { test } = require("node:test");
const { advise } = require("../src/advisor.js");
const { checkSituation, readSituation } = require("../src/situation.js");
const { vectors } = require("./vectors.js");

const facts = vectors("facts.json").vectors;
const advice = vectors("advice-situations.json").vectors;

test("there are situations", () => assert.ok(facts.length >= 15 && advice.length >= 15));

for (const vector of facts) {
  test(`facts: ${vector.name}`, () => assert.deepEqual(advise(readSituation(vector.situation)).facts, vector.facts));
}

for (const { name, situation, settings, warnings } of advice) {
  test(`advice: ${name}`, () => {
    const outcome = advise(readSituation(situation));
    assert.deepEqual(Object.fromEntries(Object.keys(settings).map((key) => [key, outcome.settings[key]])), settings);
    assert.deepEqual(outcome.applied.filter((rule) => rule.kind === "warning").map((rule) => rule.id), warnings);
  });
}

test("problems are told all at once, by field", () => {
  const { situation, problems } = checkSituation({ model: "", gpus: 0, methd: "lora", symptoms: ["nan", "sad"] });
  assert.equal(situation, null);
  assert.deepEqual(problems.map(([field]) => field), ["model", "gpus", "data", "symptoms", "methd"]);
  assert.match(problems[4][1], /did you mean --method\?/);
});

test("an unknown GPU gets the nearest names, an unknown model asks for its size", () => {
  const ask = (answers) => () => advise(readSituation({ data: "p", ...answers }));
  assert.throws(ask({ model: "Qwen/Qwen3-8B", gpu: "RTX 4091" }), /--gpu: 'RTX 4091' is not .*did you mean RTX 4090/);
  assert.throws(ask({ model: "org/unheard-of" }), /--model: .*--parameters-billion/);
  assert.throws(ask({ model: "org/unheard-of", gpu: "warp drive" }), (error) => error.problems.length === 2);
});
