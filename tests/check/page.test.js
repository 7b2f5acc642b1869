"use strict";
/* The page of `wishbone check` in a real Chromium; PAGES is the folder with the pages that the Python test wrote. */
const assert = require("node:assert/strict");
const path = require("node:path");
const { after, before, test } = require("node:test");
const { pathToFileURL } = require("node:url");
const { launch, openPage } = require("../../builder/chromium/browser.js");

let browser;
before(async () => { browser = await launch(); });
after(async () => browser?.close());

const open = (name, options) => openPage(browser, pathToFileURL(path.join(process.env.PAGES, name)).href, options);
const text = (page, selector) => page.locator(selector).textContent();

test("leafing, by buttons and by keys, and filtering by a finding", async () => {
  const page = await open("spoiled.html");
  assert.equal(await text(page, "#count"), "1 of 12");
  assert.equal(await text(page, "#pair h2"), "line 1");
  assert.ok(await page.getByRole("button", { name: "Previous" }).isDisabled());
  await page.getByRole("button", { name: "Next" }).click();
  assert.equal(await text(page, "#pair h2"), "line 2");
  await page.locator("h1").click();
  await page.keyboard.press("ArrowRight");
  assert.equal(await text(page, "#pair h2"), "line 3");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await text(page, "#count"), "2 of 12");
  await page.getByLabel("Show", { exact: true }).selectOption({ label: "empty completion" });
  assert.equal(await text(page, "#count"), "1 of 1");
  assert.equal(await text(page, "#pair h2"), "line 4");
  assert.match(await text(page, "#pair .faults"), /empty completion/);
  assert.ok(await page.getByRole("button", { name: "Next" }).isDisabled());
  await page.getByLabel("Show", { exact: true }).selectOption({ label: "pairs without a finding" });
  assert.equal(await text(page, "#count"), "1 of 5");
  await page.locator("li", { hasText: "contradict" }).getByRole("button").click();
  assert.equal(await text(page, "#count"), "1 of 2");
  assert.deepEqual(page.troubles, []);
});

test("searching marks what was found", async () => {
  const page = await open("spoiled.html");
  await page.getByLabel("Search").fill("PLUTO");
  assert.equal(await text(page, "#count"), "1 of 1");
  assert.equal(await text(page, "mark"), "Pluto");
  await page.getByLabel("Search").fill("zzz");
  assert.equal(await text(page, "#count"), "no pair fits");
  assert.equal(await page.locator("#pair > *").count(), 0);
  await page.getByLabel("Search").fill("line 6");
  assert.equal(await text(page, "#pair h2"), "line 6");
  assert.deepEqual(page.troubles, []);
});

test("as the model sees it, and as read", async () => {
  const page = await open("tokens.html");
  const trained = page.locator(".chosen .trained");
  assert.equal(await trained.textContent(), process.env.TRAINED);
  assert.equal(await page.locator(".prompt .trained").count(), 0);
  assert.ok((await page.locator(".chosen .special").count()) >= 1);
  const color = (selector) => page.locator(selector).first().evaluate((one) => getComputedStyle(one).backgroundColor);
  assert.notEqual(await color(".chosen .token"), await color(".prompt .token"));
  await page.getByLabel("as read").check();
  assert.equal(await page.locator(".trained").count(), 0);
  assert.equal(await text(page, ".prompt .prose"), "What now?");
  assert.deepEqual(page.troubles, []);
});

test("hostile text is text", async () => {
  for (const look of [{ colorScheme: "light" }, { colorScheme: "dark", viewport: { width: 360, height: 780 } }]) {
    const page = await open("hostile.html", look);
    const evil = process.env.EVIL;
    for (let at = 0; at < 3; at += 1) {
      assert.equal(await page.locator("#pair img, #pair script, #pair b, #pair iframe").count(), 0);
      await page.keyboard.press("ArrowRight");
    }
    assert.equal(await page.locator("script").count(), 2);
    await page.getByLabel("Search").fill("onerror");
    assert.ok((await page.locator("mark").count()) >= 1);
    assert.ok((await text(page, "#pair")).includes(evil));
    assert.equal(await page.evaluate(() => window.owned), undefined);
    assert.deepEqual(page.troubles, []);
  }
});

test("even markup that got into the page runs nothing", async () => {
  const page = await open("hostile.html");
  await page.evaluate(() => { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.owned = 1'>"); });
  await page.evaluate(() => { const made = document.createElement("script"); made.textContent = "window.owned = 1"; document.body.append(made); });
  await page.waitForTimeout(200);
  assert.equal(await page.evaluate(() => window.owned), undefined);
});

test("nothing sticks out on a phone, and the dark scheme is dark", async () => {
  for (const name of ["spoiled.html", "tokens.html", "hostile.html"]) {
    const page = await open(name, { colorScheme: "dark", viewport: { width: 360, height: 780 } });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), name);
    const light = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
    assert.ok(Math.max(...light) < 60, name);
  }
});

test("every control has a name, ids are unique, headings follow each other", async () => {
  const page = await open("tokens.html");
  const problems = await page.evaluate(() => {
    const found = [];
    for (const one of document.querySelectorAll("input, select")) if (!one.labels.length) found.push(one.outerHTML);
    const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
    found.push(...ids.filter((id, index) => ids.indexOf(id) < index));
    const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((one) => Number(one.tagName[1]));
    levels.forEach((level, index) => index && level > levels[index - 1] + 1 && found.push(`heading ${level} after ${levels[index - 1]}`));
    return found;
  });
  assert.deepEqual(problems, []);
});
