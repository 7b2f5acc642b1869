"use strict";
/* The package as others use it, and the page as a list of scripts that a browser can load from a file. */
const assert = require("node:assert/strict");
const { readFileSync, readdirSync } = require("node:fs");
const { builtinModules } = require("node:module");
const path = require("node:path");
const { test } = require("node:test");
const vm = require("node:vm");

const FOLDER = path.join(__dirname, "..");
const text = (...names) => readFileSync(path.join(FOLDER, ...names), "utf8");
const scripts = [...text("index.html").matchAll(/<script src="([^"]+)">/g)].map(([, name]) => name);

test("from answers to a file", () => {
  const { advise, alternatives, planned, readSituation, targetOf, write } = require("..");
  const outcome = advise(readSituation({ model: "meta-llama/Llama-3.1-70B-Instruct", data: "pairs.jsonl", gpu: "RTX 4090" }));
  const target = targetOf(outcome);
  const plan = planned(outcome.settings, target);
  assert.equal(plan.fits, false);
  assert.ok(alternatives(outcome.settings, target).length > 0);
  assert.match(write("wishbone", "yaml", outcome), /quantization: nf4/);
});

test("nothing but Node is needed to run it", () => {
  const source = readdirSync(path.join(FOLDER, "src")).map((name) => text("src", name)).join("\n");
  const needed = [...source.matchAll(/require\("([^"]+)"\)/g)].map(([, name]) => name);
  assert.ok(needed.every((name) => name.startsWith(".") || builtinModules.includes(name.replace("node:", ""))));
  assert.equal(JSON.parse(text("package.json")).dependencies, undefined);
});

test("the lock file names no server", () => assert.doesNotMatch(text("package-lock.json"), /:\/\//));

test("the page loads each script once, after those that it reads, and shares their answers with Node", () => {
  assert.equal(new Set(scripts).size, scripts.length);
  const context = vm.createContext({});
  for (const name of scripts.filter((one) => !one.startsWith("page/"))) {
    const program = text(name);
    const read = [...program.matchAll(/require\("\.\.?\/(?:data\/)?([\w]+)\.js"\)/g)].map(([, one]) => one);
    const before = scripts.slice(0, scripts.indexOf(name)).map((one) => path.basename(one, ".js"));
    assert.deepEqual(read.filter((one) => !before.includes(one)), [], `${name} is loaded before what it reads`);
    vm.runInContext(program, context, { filename: name });
  }
  const { advise, readSituation, write } = context.wishbone;
  const answers = { model: "Qwen/Qwen3-8B", data: "pairs.jsonl", gpu: "L4", symptoms: ["collapse"] };
  const node = require("..");
  for (const format of ["yaml", "json", "python"]) {
    assert.equal(write("wishbone", format, advise(readSituation(answers))), node.write("wishbone", format, node.advise(node.readSituation(answers))));
  }
});

test("no part of the page makes markup of text", () => {
  const parts = [...readdirSync(path.join(FOLDER, "page")).map((name) => text("page", name)), text("index.html")].join("\n");
  assert.doesNotMatch(parts, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|on(?:click|load|error)=/);
  assert.doesNotMatch(text("index.html").replace(/xmlns='http:[^']*'/, ""), /https?:\/\//);
});

test("every script of the page is in its list", () => {
  const all = ["src", "page", "data"].flatMap((folder) => readdirSync(path.join(FOLDER, folder)).map((name) => `${folder}/${name}`));
  const notForThePage = ["src/main.js", "src/command.js", "src/builder.js"];
  assert.deepEqual(all.filter((name) => name.endsWith(".js") && !notForThePage.includes(name)).sort(), [...scripts].sort());
});
