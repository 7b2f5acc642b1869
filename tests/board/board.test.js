"use strict";
/* The board in a real Chromium: light, dark and on a phone, with hostile text, while a run is written. */
const assert = require("node:assert/strict");
const { appendFileSync } = require("node:fs");
const path = require("node:path");
const { after, before, test } = require("node:test");
const { launch } = require(path.join(process.env.BUILDER, "chromium", "browser.js"));

const { BOARD, RUNS, SHOTS } = process.env;
const SIZES = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 800 }, colorScheme: "light", deviceScaleFactor: 2, isMobile: true },
};
let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

async function open(options, hash = "") {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.troubles = [];
  page.on("pageerror", (error) => page.troubles.push(`error: ${error.message}`));
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.troubles.push(message.text()));
  page.on("dialog", (dialog) => page.troubles.push(`dialog: ${dialog.message()}`) && dialog.dismiss());
  page.on("request", (request) => request.url().startsWith(BOARD) || page.troubles.push(`request: ${request.url()}`));
  await page.goto(BOARD + hash);
  await page.waitForSelector("#tabs a[aria-current]");
  return page;
}

for (const [name, options] of Object.entries(SIZES)) {
  test(`${name}: nothing spills over, nothing goes wrong`, async () => {
    const page = await open(options);
    assert.equal(await page.locator("#tabs a").count(), 3);
    await page.screenshot({ path: path.join(SHOTS, `board-${name}-all.png`), fullPage: true });
    await page.click("#tabs a[data-id]:text-is('first')");
    await page.screenshot({ path: path.join(SHOTS, `board-${name}-run.png`), fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(wide <= 0, `${wide} pixels too wide`);
    assert.deepEqual(page.troubles, []);
    await page.context().close();
  });
}

test("hostile text is text", async () => {
  const page = await open(SIZES.light);
  await page.click("#tabs a[data-id]:text-is('second')");
  const visible = page.locator(".group:not([hidden])");
  assert.ok((await visible.innerText()).includes("onerror=alert(1)"));
  assert.equal(await page.locator("#parts img, #parts script").count(), 0);
  assert.deepEqual(page.troubles, []);
  await page.context().close();
});

test("what a run writes appears, and what was open stays open", async () => {
  const page = await open(SIZES.light);
  await page.click("#tabs a[data-id]:text-is('second')");
  const visible = page.locator(".group:not([hidden])");
  await visible.locator("details summary").first().click();
  appendFileSync(path.join(RUNS, "second", "metrics.jsonl"), `${JSON.stringify({ step: 777, loss: 0.5 })}\n`);
  appendFileSync(path.join(RUNS, "second", "guard.jsonl"), `${JSON.stringify({ kind: "note", step: 777, text: "written meanwhile" })}\n`);
  await visible.getByText("written meanwhile").waitFor({ timeout: 15000 });
  assert.equal(await visible.locator("details[open]").count(), 1);
  await page.click("#tabs a:nth-child(1)");
  await page.locator(".group:not([hidden])").getByText("777").first().waitFor({ timeout: 15000 });
  assert.deepEqual(page.troubles, []);
  await page.context().close();
});

test("a server that is gone is waited for", async () => {
  const page = await open(SIZES.light);
  let down = true;
  await page.route("**/parts", (route) => (down ? route.abort() : route.continue()));
  await page.locator("#state.lost").waitFor({ timeout: 15000 });
  down = false;
  await page.locator("#state.live").waitFor({ timeout: 30000 });
  await page.context().close();
});
