"use strict";
/* The form is a view of answers: strings as they were typed, lists of ticked names, booleans. It checks nothing. */
{
  const { html } = globalThis.wishbone;

  /** What can go wrong in a run, in a user's words. */
  const SYMPTOMS = {
    collapse: ["It collapsed", "answers turned to nonsense, or loss went to zero at once"],
    lost_abilities: ["It lost abilities", "worse at what it could do before"],
    repetition: ["It repeats itself", "loops of words or lines"],
    chosen_falling: ["Chosen rewards fall", "both completions become less likely"],
    no_learning: ["It learned nothing", "accuracy stayed at a half"],
    length_growth: ["Answers grow longer", "without becoming better"],
    out_of_memory: ["Out of memory", "it did not fit, or stopped half way"],
    nan: ["NaN", "loss or gradients stopped being numbers"],
  };

  const named = (form, name) => [...form.querySelectorAll(`[name="${name}"]`)];

  /** Fill the lists of a form: names of models, GPUs in groups of [heading, [[value, text]...]], symptoms. */
  function fillChoices(form, models, gpuGroups) {
    form.querySelector("#models").replaceChildren(...models.map((name) => html("option", { value: name })));
    form.querySelector("#gpu").replaceChildren(
      ...gpuGroups.map(([heading, gpus]) => {
        const options = gpus.map(([value, text]) => html("option", value === "" ? { value, disabled: "" } : { value }, text));
        return html("optgroup", { label: heading }, ...options);
      }),
    );
    form.querySelector("#symptoms").replaceChildren(
      ...Object.entries(SYMPTOMS).map(([name, [text, meaning]]) =>
        html("label", { class: "check" },
          html("input", { type: "checkbox", name: "symptoms", value: name }),
          html("span", {}, text, html("small", {}, meaning)))),
    );
  }

  /** The answers that stand in a form, for each name that `first` has. */
  function readForm(form, first) {
    return Object.fromEntries(Object.keys(first).map((name) => {
      const inputs = named(form, name);
      if (Array.isArray(first[name])) return [name, inputs.filter((input) => input.checked).map((input) => input.value)];
      if (inputs[0].type === "radio") return [name, inputs.find((input) => input.checked)?.value ?? ""];
      return [name, inputs[0].type === "checkbox" ? inputs[0].checked : inputs[0].value];
    }));
  }

  /** Whether an input can hold a value: one of the choices of a list, a number in a field for numbers. */
  function canHold(input, value) {
    if (input.tagName === "SELECT") return [...input.options].some((option) => option.value === value);
    return input.type !== "number" || !Number.isNaN(Number(value));
  }

  /** Put answers into a form; what an input cannot hold leaves it as it is. */
  function writeForm(form, answers) {
    for (const [name, value] of Object.entries(answers)) {
      for (const input of named(form, name)) {
        if (input.type === "radio") input.checked = input.value === value;
        else if (input.type === "checkbox") input.checked = Array.isArray(value) ? value.includes(input.value) : value;
        else if (canHold(input, value)) input.value = value;
      }
    }
  }

  /** Show the problems `{name: sentence}` at their fields and none elsewhere. */
  function showProblems(form, problems) {
    for (const place of form.querySelectorAll(".problem")) {
      const name = place.id.replace(/-problem$/, "");
      const sentence = problems[name] ?? "";
      if (place.textContent !== sentence) place.textContent = sentence;
      for (const input of named(form, name)) {
        if (sentence) input.setAttribute("aria-invalid", "true");
        else input.removeAttribute("aria-invalid");
      }
    }
  }

  globalThis.wishbone = { ...globalThis.wishbone, SYMPTOMS, fillChoices, readForm, writeForm, showProblems };
}
