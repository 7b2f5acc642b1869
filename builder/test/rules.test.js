"use strict";
const assert = require("node:assert/strict");
const { test } = require("node:test");
const { rules } = require("../data/rules.js");
const { RulesError, Scope, evaluate, valueText } = require("../src/rules.js");

const FACTS = { n: 4, half: 0.5, name: "o'clock", yes: true, nothing: null, words: ["a", "b"] };
const scope = new Scope("tried", FACTS, { "a.set": 8 });
const book = (...some) => ({
  facts: Object.keys(FACTS),
  settings: ["a.x", "a.y"],
  rules: some.map((rule, index) => ({ id: `r${index}`, when: true, set: {}, reason: ".", source: "s", kind: "setting", ...rule })),
});

test("conditions", () => {
  const answers = [
    [true, true], [{ fact: "yes" }, true], [["not", { fact: "yes" }], false], [["=", { fact: "n" }, 4], true],
    [["=", { fact: "n" }, "4"], false], [["=", { fact: "nothing" }, null], true], [["=", { fact: "nothing" }, false], false],
    [["<", { fact: "half" }, { fact: "n" }], true], [["<=", { fact: "n" }, { setting: "a.set" }], true],
    [["in", { fact: "n" }, ["4", 5]], false], [["has", { fact: "words" }, "b"], true], [["all"], true], [["any"], false],
    [["any", true, ["unknown"]], true], [["all", false, ["unknown"]], false],
  ];
  for (const [condition, answer] of answers) assert.equal(scope.holds(condition), answer, JSON.stringify(condition));
});

test("expressions are calculated from left to right", () => {
  assert.equal(scope.value(["-", ["*", 3, { fact: "n" }], { setting: "a.set" }]), 4);
  assert.equal(scope.value(["+", 0.1, 0.2, 0.3]), 0.1 + 0.2 + 0.3);
  assert.equal(scope.value(["floor", ["/", 7, 2]]), 3);
  assert.equal(scope.value(["min", 3, 1, 2]), 1);
  assert.deepEqual(scope.value({ list: [{ fact: "name" }, 1] }), ["o'clock", 1]);
});

test("what is unknown or of the wrong kind is refused", () => {
  const wrong = [
    ["xor", true, true], ["=", 1], ["not", true, false], ["<", "a", "b"], ["<", true, 2], ["has", { fact: "name" }, "o"],
    ["=", { fact: "words" }, 1], { fact: "n" }, { fact: "constructor" }, { fact: "n", setting: "a.set" }, "yes", null, 1, [],
  ];
  for (const condition of wrong) assert.throws(() => scope.holds(condition), RulesError, JSON.stringify(condition));
  const expressions = [["+", 1], ["/", 1, 0], ["floor", 1, 2], ["-", 1, 2, 3], ["*", 1e308, 1e308], ["constructor", 1], ["+", 1, "2"],
    { setting: "a.x" }, { list: 3 }, {}];
  for (const expression of expressions) assert.throws(() => scope.value(expression), RulesError, JSON.stringify(expression));
});

test("later rules override and read what earlier ones set", () => {
  const { settings, applied } = evaluate(book({ set: { "a.x": 2 } }, { set: { "a.x": ["*", 2, { setting: "a.x" }], "a.y": { setting: "a.x" } }, reason: "Now {a.x}." }), FACTS);
  assert.deepEqual(settings, { "a.x": 4, "a.y": 2 });
  assert.equal(applied[1].reason, "Now 4.");
});

test("unknown settings, facts and names are refused", () => {
  assert.throws(() => evaluate(book({ set: { "a.z": 1 } }), FACTS), RulesError);
  assert.throws(() => evaluate(book(), { ...FACTS, more: 1 }), RulesError);
  assert.throws(() => evaluate(book({ reason: "{nobody}" }), FACTS), RulesError);
});

test("values as reasons show them", () => {
  assert.equal(valueText([null, true, false, "x", 5e-6, 16, 50000, 1234567]), "none, yes, no, x, 5e-6, 16, 50,000, 1,234,567");
});

test("the rules of the package are there", () => assert.ok(rules.rules.length > 40));
