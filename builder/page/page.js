"use strict";
/*
 * The planner page: what stands in the form is read, planned and shown, at every change. The address holds the answers,
 * so a link is a plan.
 */
{
  const {
    assumedGpu, checkSituation, constants, copyText, describePlan, downloadText, drawMemory, drawRow, fillChoices, findGpu, firstAnswers,
    fromHash, gpuGroups, gpuNames, modelNames, NO_GPU, pastedShape, readForm, RequestError, showProblems, sizeAsked, themeSwitch, toAnswers,
    toHash, writeAdvice, writeFigures, writeForm, writeMemory,
  } = globalThis.wishbone;

  const at = (id) => document.getElementById(id);
  const form = at("situation");
  let shown = null;
  let announcement = 0;

  /** Say to a screen reader, once the user has stopped typing, what the plan has become. */
  function announce(text) {
    clearTimeout(announcement);
    announcement = setTimeout(() => { at("announced").textContent = text; }, 600);
  }

  function showVerdict({ state, lead, then }) {
    at("verdict").className = `verdict card ${state}`;
    at("verdict-lead").textContent = lead;
    at("verdict-then").textContent = then;
    at("foot-text").textContent = lead;
    at("foot-verdict").className = `foot-verdict ${state}`;
    announce(`${lead} ${then}`);
  }

  function showText() {
    const format = document.querySelector('[name="format"]:checked').value;
    const { name, command, text, problem } = shown === null ? {} : shown.file(format);
    at("text").textContent = problem ?? text ?? "";
    at("command").textContent = command ?? "";
    for (const id of ["copy", "download"]) at(id).disabled = text === undefined;
    at("said").textContent = "";
    return { name, text };
  }

  function draw() {
    if (shown !== null) drawMemory(at("memory-chart"), shown.bars, shown.card, shown.room, at("memory-chart").clientWidth, shown.verdict.lead);
  }

  function clear(problems) {
    shown = null;
    showVerdict({ state: "unknown", lead: "No plan yet.", then: problems.join(" ") });
    for (const id of ["memory-chart", "memory-table", "figures", "advice"]) at(id).replaceChildren();
    at("details").hidden = true;
    showText();
  }

  function update() {
    const answers = readForm(form, firstAnswers);
    at("reference-model-field").hidden = answers.reference !== "given";
    if (answers.reference !== "given") answers.reference_model = "";
    at("gpu-numbers").hidden = answers.gpu === NO_GPU;
    if (answers.gpu === NO_GPU) Object.assign(answers, { gpu_memory_gib: firstAnswers.gpu_memory_gib, gpus: firstAnswers.gpus });
    at("memory-heading").textContent = answers.gpu === NO_GPU ? "Main memory" : "Memory of one GPU";
    drawRow(at("row-picture"), Number(answers.prompt_tokens), Number(answers.completion_tokens));
    const pasted = pastedShape(answers.shape);
    history.replaceState(null, "", toHash({ ...answers, shape: pasted.fields ?? "" }, firstAnswers) || location.pathname + location.search);
    const { situation, problems } = checkSituation(toAnswers(answers));
    const found = Object.fromEntries(problems.map(([field, text]) => [field, text.slice(text.indexOf(": ") + 2)]));
    if (pasted.problem) found.shape = pasted.problem;
    showProblems(form, found);
    if (situation === null || pasted.problem) return clear(["Some answers are missing or cannot be; they are marked."]);
    const asked = sizeAsked(situation, pasted.shape);
    if (asked !== null) {
      showProblems(form, { ...found, model: asked });
      if (document.activeElement !== at("model")) at("own-shape").open = true; // not while a name is typed
      return clear(["The size of the model is not known; the question is beside its name."]);
    }
    try {
      shown = describePlan(situation, pasted.shape);
    } catch (refused) {
      if (!(refused instanceof RequestError)) throw refused;
      return clear(refused.problems.map((problem) => problem.replace(/^--(\w+): /, "")));
    }
    at("details").hidden = false;
    showVerdict(shown.verdict);
    writeMemory(at("memory-table"), shown.items, shown.total, shown.room);
    writeFigures(at("figures"), shown.figures);
    writeAdvice(at("advice"), shown.advice);
    draw();
    return showText();
  }

  function say(text) {
    at("said").textContent = text;
  }

  /** Say which GPU the one that is chosen was taken for, where its memory alone is known. */
  function sayAssumed() {
    const { value } = at("gpu");
    at("gpu-assumed").textContent = value === NO_GPU || gpuNames.includes(value) ? "" : assumedGpu(value);
  }

  /** Answers whose GPU is one of the list, as the command takes a name that people use; what was assumed is said. */
  function withGpu(answers) {
    at("gpu-assumed").textContent = "";
    if (constants["cli.init"].WITHOUT_GPU.includes(answers.gpu.toLowerCase())) return { ...answers, gpu: NO_GPU };
    if (gpuNames.includes(answers.gpu)) return answers;
    try {
      at("gpu-assumed").textContent = assumedGpu(answers.gpu) ?? "";
      return [...at("gpu").options].some((option) => option.value === answers.gpu) ? answers : { ...answers, gpu: findGpu(answers.gpu).name };
    } catch (refused) {
      if (!(refused instanceof RequestError)) throw refused;
      at("gpu-assumed").textContent = refused.problems.join(" ");
      return { ...answers, gpu: firstAnswers.gpu };
    }
  }

  /** Put into the form what the address says; the first answers stand where it says nothing that can be. */
  function read() {
    writeForm(form, firstAnswers);
    writeForm(form, withGpu(fromHash(location.hash, firstAnswers)));
  }

  function start() {
    fillChoices(form, modelNames, gpuGroups);
    themeSwitch(at("theme"));
    read();
    at("own-shape").open = at("shape").value !== "" || at("parameters_billion").value !== "";
    update();
    form.addEventListener("input", update);
    at("gpu").addEventListener("input", sayAssumed);
    at("model").addEventListener("blur", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      writeForm(form, firstAnswers);
      sayAssumed();
      update();
    });
    at("format").addEventListener("change", showText);
    at("copy").addEventListener("click", async () => {
      say((await copyText(showText().text)) ? "Copied." : "The browser did not allow it; select the text and copy it.");
    });
    at("download").addEventListener("click", () => {
      const { name, text } = showText();
      downloadText(name, text);
      say(`Saved as ${name}.`);
    });
    at("share").addEventListener("click", async () => {
      at("shared").textContent = (await copyText(location.href)) ? "Link copied." : "The link is in the address bar.";
    });
    for (const link of document.querySelectorAll('a[href="#plan"]')) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        at("plan").focus();
        at("plan").scrollIntoView();
      });
    }
    addEventListener("hashchange", () => {
      read();
      update();
    });
    new ResizeObserver(draw).observe(at("memory-chart"));
    new IntersectionObserver(([entry]) => at("foot-verdict").classList.toggle("there", entry.isIntersecting)).observe(at("verdict"));
  }

  start();
}
