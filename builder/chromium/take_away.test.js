"use strict";
/* What leaves the page: the clipboard, a file, a link. */
const assert = require("node:assert/strict");
const { readFileSync } = require("node:fs");
const { after, before, test } = require("node:test");
const { launch, missing, openPlanner } = require("./browser.js");

const skip = missing();
let browser;
before(async () => { if (!skip) browser = await launch(); });
after(async () => browser?.close());

const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());

test("copies what is shown, in each format", { skip }, async () => {
  const page = await openPlanner(browser, { permissions: ["clipboard-read", "clipboard-write"] });
  for (const [format, start] of [["YAML", "# Written by"], ["JSON", "{\n"], ["Python", "# Direct preference"]]) {
    await page.getByRole("radio", { name: format }).check();
    await page.getByRole("button", { name: "Copy", exact: true }).click();
    await page.getByText("Copied.").waitFor();
    const text = await clipboard(page);
    assert.ok(text.startsWith(start), text.slice(0, 40));
    assert.equal(text, await page.locator("#text").textContent());
  }
  assert.deepEqual(page.troubles, []);
});

test("copies without the permission, too, or says what to do", { skip }, async () => {
  const page = await openPlanner(browser);
  await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
  await page.getByRole("button", { name: "Copy", exact: true }).click();
  await page.getByText(/Copied\.|select the text and copy it/).waitFor();
  assert.equal(await page.locator("textarea.unseen").count(), 0);
});

test("downloads what is shown, under the name of the form", { skip }, async () => {
  const page = await openPlanner(browser);
  for (const [format, name, usual] of [["YAML", "", "run.yaml"], ["Python", "", "train.py"], ["JSON", "mine.json", "mine.json"]]) {
    await page.getByRole("radio", { name: format }).check();
    await page.getByLabel("File name").fill(name);
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download" }).click()]);
    assert.equal(download.suggestedFilename(), usual);
    assert.equal(readFileSync(await download.path(), "utf8"), await page.locator("#text").textContent());
  }
  assert.deepEqual(page.troubles, []);
});

test("a link is the plan", { skip }, async () => {
  const page = await openPlanner(browser, { permissions: ["clipboard-read", "clipboard-write"] });
  assert.equal(new URL(page.url()).hash, "");
  await page.getByLabel("GPU", { exact: true }).selectOption("H200");
  await page.getByLabel("File or data set id").fill("my \"pairs\" & more #1.jsonl");
  await page.getByLabel("Out of memory").check();
  await page.getByLabel("Chosen rewards fall").check();
  await page.getByLabel("Every weight").check();
  await page.getByRole("button", { name: "Copy link to this plan" }).click();
  await page.getByText("Link copied.").waitFor();
  const link = await clipboard(page);
  const other = await openPlanner(browser, { hash: new URL(link).hash });
  assert.equal(await other.locator("#text").textContent(), await page.locator("#text").textContent());
  assert.equal(await other.getByLabel("File or data set id").inputValue(), "my \"pairs\" & more #1.jsonl");
  assert.ok(await other.getByLabel("Out of memory").isChecked());
  assert.ok(await other.getByLabel("Every weight").isChecked());
  await other.getByRole("button", { name: "Start again" }).click();
  assert.equal(new URL(other.url()).hash, "");
  assert.deepEqual([...page.troubles, ...other.troubles], []);
});

test("a link with nonsense in it does no harm", { skip }, async () => {
  const page = await openPlanner(browser, { hash: "#gpu=nothing&gpus=minus&__proto__=1&constructor=2&symptoms=nan%20bogus&method=%00&plan" });
  assert.equal(await page.getByLabel("GPUs").inputValue(), "1");
  assert.ok(await page.getByLabel("NaN").isChecked());
  assert.match(await page.locator("#verdict-lead").textContent(), /GiB/);
  assert.deepEqual(page.troubles, []);
});

test("a link may name a GPU as people do", { skip }, async () => {
  for (const [name, value, said] of [
    ["H100", "H100 PCIe", /taken for H100 PCIe, the smallest that it may be; it may also be H100 SXM/],
    ["4090 laptop", "RTX 4090 Laptop", /^$/],
    ["CPU", "none", /^$/],
    ["24GB", "24GB", /taken for A10, the smallest and oldest of 8 \(A10G, /],
    ["a 48 GB card", "A40", /taken for A40, the smallest and oldest of 6/],
    ["mi300x", "RTX 4090", /is an AMD GPU, which is known and not supported yet/],
  ]) {
    const page = await openPlanner(browser, { hash: `#gpu=${encodeURIComponent(name)}` });
    assert.equal(await page.locator("#gpu").inputValue(), value);
    assert.match(await page.locator("#gpu-assumed").textContent(), said);
    assert.deepEqual(page.troubles, []);
  }
});

test("who knows the memory alone plans with that", { skip }, async () => {
  const page = await openPlanner(browser);
  await page.locator("#gpu").selectOption({ label: "A GPU with 24 GB" });
  assert.match(await page.locator("#gpu-assumed").textContent(), /'24GB' is taken for A10, .* name yours if you can$/);
  const text = await page.locator("#text").textContent();
  assert.match(await page.locator("#verdict-lead").textContent(), /GiB/);
  await page.locator("#gpu").selectOption("A10");
  assert.equal(await page.locator("#gpu-assumed").textContent(), "");
  assert.equal(await page.locator("#text").textContent(), text);
  await page.locator("#gpu").selectOption("12GB");
  await page.getByRole("button", { name: "Start again" }).click();
  assert.equal(await page.locator("#gpu-assumed").textContent(), "");
  assert.deepEqual(page.troubles, []);
});
