"use strict";
/* The page by keyboard alone, and as a screen reader has it. */
const assert = require("node:assert/strict");
const { after, before, test } = require("node:test");
const { launch, missing, openPlanner } = require("./browser.js");

const skip = missing();
let browser;
before(async () => { if (!skip) browser = await launch(); });
after(async () => browser?.close());

test("every control has a name, every description is there, ids are unique", { skip }, async () => {
  const page = await openPlanner(browser);
  const problems = await page.evaluate(() => {
    const found = [];
    for (const node of document.querySelectorAll("input, select, textarea")) if (!node.labels.length) found.push(`no label: ${node.outerHTML}`);
    for (const node of document.querySelectorAll("[aria-describedby], [aria-labelledby]")) {
      for (const id of `${node.getAttribute("aria-describedby") ?? ""} ${node.getAttribute("aria-labelledby") ?? ""}`.split(" ").filter(Boolean)) {
        if (!document.getElementById(id)) found.push(`nothing is called ${id}`);
      }
    }
    for (const node of document.querySelectorAll("fieldset")) if (node.firstElementChild?.tagName !== "LEGEND") found.push("a fieldset without legend");
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    found.push(...ids.filter((id, index) => ids.indexOf(id) < index).map((id) => `twice: ${id}`));
    const levels = [...document.querySelectorAll("h1, h2, h3")].map((node) => Number(node.tagName[1]));
    levels.forEach((level, index) => index && level > levels[index - 1] + 1 && found.push(`heading ${level} after ${levels[index - 1]}`));
    return found;
  });
  assert.deepEqual(problems, []);
});

test("the chart has a table that says the same", { skip }, async () => {
  const page = await openPlanner(browser);
  const picture = page.getByRole("img", { name: /GiB/ });
  assert.ok(await picture.isVisible());
  const table = page.getByRole("table");
  assert.equal(await table.getByRole("columnheader").count(), 3);
  const numbers = await table.getByRole("cell").allTextContents();
  const parts = numbers.filter((_, index) => index % 2 === 0).map(Number);
  const together = parts.pop();
  assert.equal(parts.length, 10);
  assert.ok(Math.abs(parts.reduce((sum, part) => sum + part) - together) < 0.06);
  const widths = await picture.locator(".bar").first().locator("rect").evaluateAll((all) => all.map((one) => Number(one.getAttribute("width"))));
  assert.ok(widths.length >= 5 && widths.length <= 10);
});

test("keyboard alone: from the address bar to a plan for another GPU, copied", { skip }, async () => {
  const page = await openPlanner(browser, { permissions: ["clipboard-read", "clipboard-write"] });
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.value || document.activeElement.textContent);
  const reach = async (wanted) => {
    for (let step = 0; step < 60; step += 1) {
      await page.keyboard.press("Tab");
      const outline = await page.evaluate(() => {
        const node = document.activeElement;
        const style = getComputedStyle(node.nextElementSibling && node.matches('.choice input, .switch input') ? node.nextElementSibling : node);
        return node === document.body || style.outlineStyle !== "none";
      });
      assert.ok(outline, `no visible focus: ${await focused()}`);
      if ((await focused()) === wanted) return;
    }
    assert.fail(`${wanted} cannot be reached`);
  };
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "Skip to the plan");
  await reach("gpu");
  await page.keyboard.type("H200");
  await reach("gpus");
  await page.keyboard.press("ArrowUp");
  assert.equal(await page.getByLabel("GPUs").inputValue(), "2");
  await reach("lora");
  await page.keyboard.press("ArrowRight");
  assert.ok(await page.getByLabel("Every weight").isChecked());
  await reach("collapse");
  await page.keyboard.press("Space");
  assert.ok(await page.getByLabel("It collapsed").isChecked());
  await reach("text");
  await reach("copy");
  await page.keyboard.press("Enter");
  await page.getByText("Copied.").waitFor();
  const text = await page.evaluate(() => navigator.clipboard.readText());
  assert.match(text, /method: full/);
  assert.deepEqual(page.troubles, []);
});

test("the link at the top leads to the plan and leaves the address alone", { skip }, async () => {
  const page = await openPlanner(browser, { hash: "#gpu=H200" });
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "plan");
  assert.equal(new URL(page.url()).hash, "#gpu=H200");
});

test("what changes is announced once typing has stopped", { skip }, async () => {
  const page = await openPlanner(browser);
  const said = page.locator("#announced");
  assert.equal(await said.getAttribute("aria-live"), "polite");
  await page.getByLabel("Memory, GiB").fill("3");
  await page.waitForFunction(() => document.getElementById("announced").textContent.includes("does not fit"));
  await page.getByLabel("Memory, GiB").fill("-3");
  await page.waitForFunction(() => document.getElementById("announced").textContent.includes("No plan yet"));
  const described = await page.getByLabel("Memory, GiB").getAttribute("aria-describedby");
  assert.match(await page.locator(`#${described.split(" ").at(-1)}`).textContent(), /not accepted/);
});
