"use strict";
/*
 * Pictures of the planner, dark and light, wide and narrow: node chromium/screenshots.js FOLDER [HASH]
 */
const path = require("node:path");
const { launch, missing, openPlanner } = require("./browser.js");

const LOOKS = {
  "wide-light": { viewport: { width: 1440, height: 1000 }, colorScheme: "light" },
  "wide-dark": { viewport: { width: 1440, height: 1000 }, colorScheme: "dark" },
  "narrow-light": { viewport: { width: 360, height: 780 }, colorScheme: "light" },
  "narrow-dark": { viewport: { width: 360, height: 780 }, colorScheme: "dark" },
};

async function main([folder, hash = ""]) {
  if (missing() || !folder) throw new Error(missing() || "name a folder for the pictures");
  const browser = await launch();
  for (const [name, look] of Object.entries(LOOKS)) {
    const page = await openPlanner(browser, { hash, reducedMotion: "reduce", ...look });
    await page.screenshot({ path: path.join(folder, `planner-${name}.png`), fullPage: true });
    for (const trouble of page.troubles) console.error(trouble);
    await page.context().close();
  }
  await browser.close();
}

main(process.argv.slice(2));
