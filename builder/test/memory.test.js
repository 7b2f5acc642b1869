"use strict";
/* Memory by item, to the bit as Python estimates it, over shapes read from config.json. */
const assert = require("node:assert/strict");
const { test } = require("node:test");
const { estimateMemory } = require("../src/memory.js");
const { readShape } = require("../src/model_shape.js");
const { floorDivide, roundEven } = require("../src/whole_numbers.js");
const { vectors } = require("./vectors.js");

const all = vectors("memory-plans.json").vectors;
const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());

test("there are at least forty plans", () => assert.ok(all.length >= 40, String(all.length)));

for (const { name, config, plan, items } of all) {
  test(name, () => {
    const given = Object.fromEntries(Object.entries(plan).map(([key, value]) => [camel(key), value]));
    const estimate = estimateMemory(readShape(config), given);
    assert.deepEqual(estimate.items, items);
    assert.deepEqual(Object.keys(estimate.items), Object.keys(items));
    assert.equal(estimate.total, Object.values(items).reduce((sum, bytes) => sum + bytes, 0));
  });
}

test("whole numbers are Python's", () => {
  assert.deepEqual([[7, 2], [-7, 2], [1, 0.1], [0.3, 0.1], [6, 0.2]].map(([left, right]) => floorDivide(left, right)), [3, -4, 9, 2, 29]);
  assert.deepEqual([0.5, 1.5, 2.5, 2.4, 2.6, 3].map(roundEven), [0, 2, 2, 2, 3, 3]);
});

test("fields that lack or are no sizes are named all at once", () => {
  assert.throws(() => readShape({ hidden_size: -1, vocab_size: "many" }, "org/model"), (error) =>
    error.problems.length === 2 && /lacks num_hidden_layers, num_attention_heads, intermediate_size/.test(error.problems[0])
    && /hidden_size is -1, vocab_size is/.test(error.problems[1]));
});
