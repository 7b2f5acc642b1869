"use strict";
/* Text that a user types or a link brings stays text. */
const assert = require("node:assert/strict");
const { after, before, test } = require("node:test");
const { PAGE, launch, missing, openPlanner } = require("./browser.js");

const skip = missing();
let browser;
before(async () => { if (!skip) browser = await launch(); });
after(async () => browser?.close());

const HOSTILE = [
  "<img src=x onerror=alert(1)>", "\"><script>alert(1)</script>", "</script><script>alert(1)</script>", "</textarea><svg onload=alert(1)>",
  "javascript:alert(1)", "{{constructor.constructor('alert(1)')()}}", "'); alert(1); //", "\u202e\u2066evil", "a\\u003cb> \\\"\"\"\"", "${alert(1)} `x`", "😀 é ß 漢字",
];
const markup = (page) => page.evaluate(() => [...document.querySelectorAll("*")].map((node) => node.tagName + [...node.attributes].map((one) => one.name).sort()).sort().join());

test("text that is typed never becomes markup", { skip }, async () => {
  const page = await openPlanner(browser);
  await page.getByLabel("Another model", { exact: true }).first().check();
  const markups = [];
  for (const text of ["harmless", ...HOSTILE]) {
    for (const label of ["File or data set id", "Name of the reference model", "File name"]) await page.getByLabel(label).fill(text);
    const found = [];
    for (const format of ["YAML", "Python"]) {
      const choice = page.getByRole("radio", { name: format });
      await choice.press("Space"); // a click would meet what is above it while the page moves
      assert.ok(await choice.isChecked());
      found.push(await markup(page));
    }
    markups.push(found);
    assert.deepEqual(found, markups[0], text);
  }
  assert.deepEqual(page.troubles, []);
});

test("nor does text that a link brings", { skip }, async () => {
  const page = await openPlanner(browser);
  for (const text of HOSTILE) {
    const answers = { model: text, data: text, reference: "given", reference_model: text, output: text, gpu: text, shape: text };
    await page.goto(`${PAGE}#${new URLSearchParams(answers)}`);
    await page.reload();
    assert.equal(await page.getByLabel("File or data set id").inputValue(), text);
    assert.deepEqual(page.troubles, [], text);
  }
});

test("the policy of the page forbids what the page does not do", { skip }, async () => {
  const page = await openPlanner(browser);
  const outcome = await page.evaluate(async () => {
    const found = {};
    try { document.body.innerHTML = "<b>x</b>"; found.markup = "taken"; } catch (error) { found.markup = error.name; }
    try { await fetch("http://127.0.0.1:9/"); found.fetch = "sent"; } catch (error) { found.fetch = error.name; }
    return found;
  });
  assert.deepEqual(outcome, { markup: "TypeError", fetch: "TypeError" });
  assert.ok(page.troubles.every((trouble) => /Content Security Policy|TrustedHTML/.test(trouble)), page.troubles.join("\n"));
});
