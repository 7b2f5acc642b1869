"use strict";
/* The form is filled and the page says what Python's planner says of the same answers. */
const assert = require("node:assert/strict");
const { execFileSync } = require("node:child_process");
const path = require("node:path");
const { after, before, test } = require("node:test");
const { launch, missing, openPlanner } = require("./browser.js");

const skip = missing();
const SCRIPT = path.join(__dirname, "..", "..", "tests", "builder", "plan_in_python.py");
const GIB = 2 ** 30;
const ANSWERS = [
  { model: "meta-llama/Llama-3.1-8B-Instruct", gpu: "RTX 4090", data: "pairs.jsonl", prompt_tokens: 121, completion_tokens: 288, longest_tokens: 2048 },
  { model: "Qwen/Qwen3-8B", gpu: "RTX 3090", gpus: 2, data: "org/pairs", prompt_tokens: 669, completion_tokens: 106, longest_tokens: 4000, pairs: 60000, symptoms: ["collapse", "out_of_memory"] },
  { model: "meta-llama/Llama-3.1-70B-Instruct", gpu: "RTX 4090", data: "pairs.jsonl", prompt_tokens: 128, completion_tokens: 256, longest_tokens: 1024 },
  { model: "meta-llama/Llama-3.2-1B-Instruct", gpu: "T4", data: "pairs.jsonl", prompt_tokens: 128, completion_tokens: 256, longest_tokens: 1024, method: "full", target: "wishbone" },
  { model: "Qwen/Qwen2.5-0.5B-Instruct", gpu: "H200", gpu_memory_gib: 40, data: "pairs.jsonl", prompt_tokens: 64, completion_tokens: 64, longest_tokens: 512,
    reference: "given", reference_model: "Qwen/Qwen2.5-1.5B-Instruct", noisy_labels: true, learning_rate: 0.0002 },
  { model: "smollm2-135m-instruct", gpu: "none", data: "pairs.jsonl", prompt_tokens: 128, completion_tokens: 256, longest_tokens: 1024 },
];
let browser;
let expected;

before(async () => {
  if (skip) return;
  browser = await launch();
  expected = JSON.parse(execFileSync(process.env.PYTHON ?? "python3", [SCRIPT, JSON.stringify(ANSWERS)], { encoding: "utf8", maxBuffer: 2 ** 26 }));
});
after(async () => browser?.close());

async function fill(page, answers) {
  for (const [name, value] of Object.entries(answers)) {
    const input = page.locator(`#situation [name="${name}"]`);
    if (name === "gpu") await input.selectOption(value);
    else if (name === "symptoms") for (const one of value) await page.locator(`[name="symptoms"][value="${one}"]`).check();
    else if (["method", "reference", "target"].includes(name)) await page.locator(`[name="${name}"][value="${value}"]`).check();
    else if (value === true) await input.check();
    else await input.fill(String(value));
  }
}

ANSWERS.forEach((answers, index) => {
  test(`${answers.model} on ${answers.gpu}`, { skip }, async () => {
    const plan = expected[index];
    const page = await openPlanner(browser);
    await fill(page, answers);
    const cells = await page.locator("#memory-table td").allTextContents();
    const shown = cells.filter((_, place) => place % 2 === 0).map(Number);
    const items = [...Object.values(plan.items), plan.total].map((bytes) => Number((bytes / GIB).toFixed(2)));
    assert.deepEqual(shown, items);
    assert.equal(await page.locator("#text").textContent(), plan.text);
    const lead = await page.locator("#verdict-lead").textContent();
    if (answers.gpu === "none") assert.match(lead, /of main memory/);
    else assert.match(lead, plan.fits ? /^It fits/ : /^It (does not|hardly) fits?/);
    assert.ok(lead.includes((plan.total / GIB).toFixed(1)), lead);
    const figures = await page.locator("#figures").innerText();
    assert.ok(figures.includes(`at most ${plan.budget.toLocaleString("en")}`), figures);
    const then = await page.locator("#verdict-then").textContent();
    for (const [settings, gpu, memory] of plan.alternatives) {
      for (const setting of settings) assert.ok(then.includes(setting.replace("=", " ")), then);
      if (gpu) assert.ok(then.includes(gpu), then);
      assert.ok(then.includes(`${(memory / GIB).toFixed(1)} GiB`), then);
    }
    if (plan.seconds === null) assert.match(figures, /not known/);
    else assert.match(figures, /Time a step/);
    assert.deepEqual(page.troubles, []);
    await page.context().close();
  });
});

test("bars are as long as what they stand for", { skip }, async () => {
  const page = await openPlanner(browser, { reducedMotion: "reduce" });
  const { widths, card, grid } = await page.evaluate(() => ({
    widths: [...document.querySelectorAll(".bar")].map((bar) => bar.getBBox().width),
    card: Number(document.querySelector(".limit").getAttribute("x1")),
    grid: [...new Set([...document.querySelectorAll(".bars .grid")].map((line) => Number(line.getAttribute("x1"))))],
  }));
  const totals = (await page.locator(".bars .total").allTextContents()).map(parseFloat);
  const scale = card / 23.99;
  assert.equal(widths.length, totals.length);
  assert.ok(widths.length >= 4);
  widths.forEach((width, index) => assert.ok(Math.abs(width / scale - totals[index]) < 0.15, `${totals[index]}: ${width / scale}`));
  assert.ok(Math.abs((grid[1] - grid[0]) / scale - 5) < 0.01);
});

test("a config.json of one's own is a shape, and one that lacks fields says which", { skip }, async () => {
  const page = await openPlanner(browser);
  await page.getByText("Another model", { exact: true }).first().click();
  const config = { model_type: "llama", hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8, vocab_size: 128256 };
  const before = await page.locator("#memory-table").textContent();
  await page.getByLabel("Name", { exact: true }).fill("org/mine");
  await page.locator("#verdict-lead").getByText("No plan yet.").waitFor();
  assert.match(await page.locator("#model-problem").textContent(), /How large is org\/mine\? Give its parameters in billions, such as 8/);
  assert.doesNotMatch(await page.locator("body").innerText(), /--parameters/);
  await page.getByLabel("Its config.json").fill(JSON.stringify({ ...config, transformers_version: "5" }, null, 2));
  assert.equal(await page.locator("#memory-table").textContent(), before);
  const linked = await openPlanner(browser, { hash: new URL(page.url()).hash });
  assert.equal(await linked.locator("#memory-table").textContent(), before);
  assert.doesNotMatch(page.url(), /transformers_version/);
  for (const [text, problem] of [["{}", /lacks hidden_size, num_hidden_layers/], ["[]", /no config\.json/], ["{", /no JSON/], ['{"hidden_size": -1}', /hidden_size is -1/]]) {
    await page.getByLabel("Its config.json").fill(text);
    assert.match(await page.locator("#shape-problem").textContent(), problem);
  }
  await page.getByLabel("Its config.json").fill("");
  await page.getByLabel("Parameters, in billions").fill("8");
  await page.locator("#verdict-lead").getByText("GiB").waitFor();
  assert.deepEqual(page.troubles, []);
});

test("a model that nothing is known of is asked about where it is answered, and a slip is named", { skip }, async () => {
  const page = await openPlanner(browser, { hash: "#model=acme%2Ffoo" });
  assert.match(await page.locator("#model-problem").textContent(), /How large is acme\/foo\?/);
  assert.ok(await page.getByLabel("Parameters, in billions").isVisible());
  await page.getByLabel("Name", { exact: true }).fill("meta-llama/Llama-3.1-8B-Instructt-x");
  assert.match(await page.locator("#model-problem").textContent(), /Did you mean meta-llama\/Llama-3\.1-8B-Instruct\?/);
  assert.equal(await page.locator("#model").getAttribute("aria-invalid"), "true");
  assert.deepEqual(page.troubles, []);
});

test("names of bars cross no line, and a plan for the CPU speaks of main memory", { skip }, async () => {
  const crossed = () => [...document.querySelectorAll(".bars .name, .bars .limit-name")].filter((name) => {
    const box = name.getBBox();
    return [...document.querySelectorAll(".bars line.grid, .bars line.limit")].some((line) => {
      const [x, from, to] = ["x1", "y1", "y2"].map((key) => Number(line.getAttribute(key)));
      return x > box.x && x < box.x + box.width && to > box.y + 2 && from < box.y + box.height - 2;
    });
  }).map((name) => name.textContent);
  for (const [hash, widths] of [["", [360, 1440]], ["#gpu=RTX+3050+Laptop+4GB", [360]], ["#gpu=H200", [1440]], ["#gpu=none", [360]]]) {
    for (const width of widths) {
      const page = await openPlanner(browser, { hash, viewport: { width, height: 800 } });
      assert.ok((await page.locator(".bars .name").count()) >= 2);
      assert.deepEqual(await page.evaluate(crossed), [], `${hash} ${width}`);
      const none = hash === "#gpu=none";
      assert.equal(await page.locator("#memory-heading").textContent(), none ? "Main memory" : "Memory of one GPU");
      assert.equal(await page.getByLabel("Memory, GiB").isVisible(), !none);
      await page.context().close();
    }
  }
});
