"use strict";
/*
 * A real Chromium for the tests of the page, driven by playwright-core. Where one of them is not there, the tests are
 * skipped with one line that says what to do about it.
 */
const { existsSync } = require("node:fs");
const path = require("node:path");
const { pathToFileURL } = require("node:url");

const PAGE = pathToFileURL(path.join(__dirname, "..", "index.html")).href;

function chromiumPath() {
  const folders = (process.env.PATH ?? "").split(path.delimiter);
  const names = ["chromium", "chromium-browser", "google-chrome"];
  const places = [process.env.CHROMIUM, ...folders.flatMap((folder) => names.map((name) => path.join(folder, name)))];
  return places.find((place) => place && existsSync(place));
}

function driver() {
  try {
    return require("playwright-core").chromium;
  } catch (error) {
    if (error.code !== "MODULE_NOT_FOUND") throw error;
    return null;
  }
}

/** Why the page cannot be tested here, or false. */
function missing() {
  if (!chromiumPath()) return "no Chromium here: install the package chromium, or name the program in CHROMIUM";
  if (!driver()) return "playwright-core is not here: run `npm ci` in builder/";
  return false;
}

/** A headless browser; the sandbox is left out for root alone, for whom Chromium has none. */
function launch() {
  const root = process.getuid?.() === 0;
  return driver().launch({ executablePath: chromiumPath(), args: root ? ["--no-sandbox"] : [] });
}

/**
 * A page in a fresh context. Everything that goes wrong in it, and every request that is not for a file, is noted in
 * `page.troubles`.
 */
async function openPage(browser, url, options) {
  const context = await browser.newContext({ acceptDownloads: true, viewport: { width: 1440, height: 1000 }, ...options });
  const page = await context.newPage();
  page.troubles = [];
  page.on("pageerror", (error) => page.troubles.push(`error: ${error.message}`));
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && page.troubles.push(message.text()));
  page.on("dialog", (dialog) => page.troubles.push(`dialog: ${dialog.message()}`) && dialog.dismiss());
  page.on("request", (request) => /^(file|data|blob):/.test(request.url()) || page.troubles.push(`request: ${request.url()}`));
  await page.goto(url);
  return page;
}

/** The planner in a fresh context. */
const openPlanner = (browser, { hash = "", ...options } = {}) => openPage(browser, PAGE + hash, options);

module.exports = { PAGE, launch, missing, openPage, openPlanner };
