"use strict";
/* How the page looks: colours that can be read, dark and light, narrow and wide, and still for people who ask for no motion. */
const assert = require("node:assert/strict");
const { after, before, test } = require("node:test");
const { launch, missing, openPlanner } = require("./browser.js");

const skip = missing();
let browser;
before(async () => { if (!skip) browser = await launch(); });
after(async () => browser?.close());

const ground = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const STATES = {
  fits: "",
  "does not fit": "#gpu_memory_gib=2",
  "problems and warnings": "#gpus=0&pairs=-1&learning_rate=0.5",
  warnings: "#learning_rate=0.5&symptoms=no_learning%20collapse",
};

/** Texts whose contrast with what lies behind them is below AA: 4.5, or 3 where letters are large. */
function faint() {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("option, datalist, script, noscript, :disabled")) continue;
    const style = getComputedStyle(node);
    const ink = light(channels(node.closest("svg") ? style.fill : style.color));
    const paper = light(behind(node));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push(`${contrast.toFixed(2)}: ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return found;
}

for (const colorScheme of ["light", "dark"]) {
  for (const [state, hash] of Object.entries(STATES)) {
    test(`every text can be read, ${colorScheme}, ${state}`, { skip }, async () => {
      const page = await openPlanner(browser, { colorScheme, hash, reducedMotion: "reduce" });
      assert.deepEqual(await page.evaluate(faint), []);
      assert.deepEqual(page.troubles, []);
    });
  }
}

test("colours follow the system, and the switch, and are remembered", { skip }, async () => {
  const page = await openPlanner(browser, { colorScheme: "light", reducedMotion: "reduce" });
  const light = await ground(page);
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await ground(page);
  assert.notEqual(light, dark);
  await page.getByRole("radio", { name: "Light" }).check();
  assert.equal(await ground(page), light);
  await page.reload();
  assert.equal(await ground(page), light);
  await page.getByRole("radio", { name: "Dark" }).check();
  await page.emulateMedia({ colorScheme: "light" });
  assert.equal(await ground(page), dark);
});

for (const width of [320, 360, 768, 1024, 1440, 2560]) {
  test(`nothing is wider than a screen of ${width} pixels`, { skip }, async () => {
    const page = await openPlanner(browser, { viewport: { width, height: 800 } });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
    const wide = await page.evaluate(() => document.getElementById("plan").getBoundingClientRect().left > document.getElementById("situation").getBoundingClientRect().right);
    assert.equal(wide, width > 860);
  });
}

test("nothing moves for people who ask for no motion", { skip }, async () => {
  const moving = () => [...document.querySelectorAll("*")].filter((node) => getComputedStyle(node).transitionDuration !== "0s").length;
  assert.ok((await (await openPlanner(browser, { reducedMotion: "no-preference" })).evaluate(moving)) > 0);
  assert.equal(await (await openPlanner(browser, { reducedMotion: "reduce" })).evaluate(moving), 0);
});
