"use strict";
const assert = require("node:assert/strict");
const { test } = require("node:test");
const emit = require("../src/emit.js");
const { vectors } = require("./vectors.js");

const { numbers, strings, comments } = vectors("emit.json");

test("numbers are written as in Python", () => {
  assert.ok(numbers.length >= 20);
  for (const { number, text, yaml = text } of numbers) {
    assert.equal(emit.numberText(number), text);
    assert.equal(emit.yamlFlow(number), yaml);
    assert.ok(Number(text) === number);
  }
});

test("what is no number is refused", () => {
  for (const number of [NaN, Infinity, -Infinity]) assert.throws(() => emit.numberText(number), RangeError);
});

test("text is written as in Python", () => {
  assert.ok(strings.length >= 10);
  for (const { points, yaml, python, json } of strings) {
    const text = String.fromCodePoint(...points);
    assert.equal(emit.yamlFlow(text), yaml);
    assert.equal(emit.pythonLiteral(text), python);
    assert.equal(emit.jsonText({ key: text }), `{\n  "key": ${json}\n}\n`);
    assert.equal(JSON.parse(json), text);
  }
});

test("comments are wrapped and escaped as in Python", () => {
  for (const { points, indent, lines } of comments) assert.deepEqual(emit.comment(String.fromCodePoint(...points), indent), lines);
});

test("JSON documents read back as they were", () => {
  const document = { a: { text: "o'clock \u2028 </script>", many: [1, 2.5e-7, null, true, ["x"], { k: "v" }] }, b: "\\" };
  assert.deepEqual(JSON.parse(emit.jsonText(document)), document);
});

test("YAML has sections, comments above entries, and values on one line", () => {
  const text = emit.yamlText({ a: { rate: 5e-6, name: "no" }, b: [1, "x y"] }, { "": "Head.", "a.rate": "Why so low." });
  assert.equal(text, '# Head.\na:\n  # Why so low.\n  rate: 5.0e-6\n  name: "no"\nb: [1, "x y"]\n');
});
